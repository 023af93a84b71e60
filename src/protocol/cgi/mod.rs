//! What FastCGI, SCGI and uwsgi have in common: the variables of CGI/1.1 (RFC 3875) that a request becomes, and the header
//! block that an answer begins with.
//!
//! | part | what |
//! |---|---|
//! | [`Params`] | the variables of one route: the usual ones, and the route's own |
//! | [`Script`] | what of a path is the script, and what is behind it |
//! | [`HeaderEnd`], [`parse_header`] | the answer's header |

mod params;
mod response;
mod script;

pub(crate) use params::{OwnParams, Params};
pub(crate) use response::{HeaderEnd, parse_header};
pub(crate) use script::Script;
#[cfg(feature = "fastcgi")]
pub(crate) use script::{Index, Root, Split};

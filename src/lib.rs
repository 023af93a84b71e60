extern crate self as millpond;
pub mod bufs;
pub mod conf;
pub mod error;
pub mod headers;
pub mod pipe;
pub mod protocol;
pub mod template;

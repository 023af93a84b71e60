//! The proxy as its users meet it: the binary is started with a configuration file and watched from outside.

mod buffering;
mod framing;
mod smuggling;
mod support;

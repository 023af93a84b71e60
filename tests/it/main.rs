//! The proxy as its users meet it: the binary is started with a configuration file and watched from outside.

mod buffering;
mod aborts;
mod framing;
mod requests;
mod retries;
mod smuggling;
mod timeouts;
mod tls_h2;
mod websocket;
mod support;

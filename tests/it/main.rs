//! The proxy as its users meet it: the binary is started with a configuration file and watched from outside.

mod aborts;
mod buffering;
mod config;
mod examples;
mod filters;
mod framing;
mod observability;
mod requests;
mod retries;
mod routes;
mod servers;
mod smuggling;
mod support;
mod timeouts;
mod tls_h2;
mod websocket;

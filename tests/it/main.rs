//! The proxy as its users meet it: the binary is started with a configuration file and watched from outside.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(unreachable_pub, reason = "`pub` marks what the tests use of the support")]

mod aborts;
mod access;
mod admin;
mod balance;
mod body_filters;
mod buffering;
mod chain;
mod compress;
mod config;
mod dns;
mod drain;
mod errors;
mod examples;
mod failover;
mod fastcgi;
mod filters;
mod framing;
mod health;
mod internal_redirects;
mod jwt;
mod keepalive;
mod limits;
mod memcached;
mod observability;
mod protocols;
mod redis;
mod reload;
mod requests;
mod retries;
mod rewriting;
mod routes;
mod servers;
mod smuggling;
mod subrequests;
mod support;
mod timeouts;
mod tls_h2;
mod upgrade;
mod uwsgi;
mod websocket;

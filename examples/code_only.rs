//! A proxy without a configuration file: the same keys, written in code.
//!
//! ```sh
//! cargo run --example code_only -- 127.0.0.1:8000 127.0.0.1:8080
//! ```

use millpond::Millpond;
use millpond::conf::Conf;
use serde_json::json;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(listen), Some(upstream)) = (args.next(), args.next()) else {
        eprintln!("usage: code_only LISTEN UPSTREAM");
        return ExitCode::FAILURE;
    };
    let conf = Conf::from_value(json!({
        "upstreams": { "app": { "servers": [upstream] } },
        "services": [{
            "name": "web",
            "listen": [listen],
            "filters": [{ "request_id": {} }],
            "routes": [{ "upstream": "app", "buffering": { "max_temp_file_size": "256MiB" } }],
        }],
    }));
    match conf {
        Ok(conf) => Millpond::new().conf(conf).run(),
        Err(errors) => {
            eprintln!("{errors}");
            ExitCode::FAILURE
        }
    }
}

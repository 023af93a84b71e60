//! A route's settings of the protocol that its upstream speaks.

use super::Resolver;
use crate::conf::source::key_path;
use crate::conf::{HTTP, PROTOCOL_KEYS, Protocol, raw};
use serde_json::{Map, Value};

impl Resolver {
    /// The protocol that the route's upstream speaks. Settings of others may be inherited: the defaults are for all
    /// routes, whatever they speak; in the route itself they are a mistake.
    pub(super) fn route_protocol(&mut self, route: &raw::Route, raw: &raw::Conf, path: &str) -> Option<Protocol> {
        let upstream = route.upstream.as_ref().map(|name| raw.upstreams.get(name));
        let spoken = match upstream {
            Some(upstream) => Some(&upstream?.protocol.0), // an unknown upstream has been told
            None => None,
        };
        let mut conf = Value::Object(Map::new());
        for (name, key, settings) in settings_of(route) {
            let own = key_path(path, &key);
            match spoken {
                _ if !self.is_settings_key(&name, &key, path) => {}
                Some(spoken) if *spoken == name => conf = Value::Object(settings.clone()),
                Some(spoken) if self.source.has(&own) => {
                    let expected = format!("those of {spoken}, which the route's upstream speaks");
                    self.error(&own, format!("settings of {name}"), expected);
                }
                None if self.source.has(&own) => {
                    self.error(&own, format!("settings of {name}"), "an upstream that speaks it");
                }
                Some(_) | None => {}
            }
        }
        let name = spoken?.clone();
        let path = self.origin(path, &settings_key(&name));
        let place = self.source.place(&path);
        Some(Protocol { name, conf, path, place })
    }

    /// Is this where settings of the protocol stand? Complains if not.
    fn is_settings_key(&mut self, name: &str, key: &str, path: &str) -> bool {
        let expected = match settings_key(name) {
            _ if name == HTTP => "no settings, HTTP has none".to_owned(),
            expected if expected == key => return true,
            expected => format!("them under the route's own key {expected}"),
        };
        let origin = self.origin(path, key);
        self.error(&origin, format!("settings of {name}"), expected);
        false
    }
}

/// Each protocol that the route, or the defaults, have settings of: its name, their key, and what they are.
fn settings_of(route: &raw::Route) -> impl Iterator<Item = (String, String, &Map<String, Value>)> {
    let known = [&route.fastcgi, &route.memcached, &route.redis, &route.scgi, &route.uwsgi];
    let known = PROTOCOL_KEYS.into_iter().zip(known);
    let known = known.filter_map(|(name, settings)| Some((name.to_owned(), name.to_owned(), settings.as_ref()?)));
    let others = route.protocol.iter();
    known.chain(others.map(|(name, settings)| (name.clone(), key_path("protocol", name), settings)))
}

/// Where the settings of a protocol stand in a route.
fn settings_key(name: &str) -> String {
    if PROTOCOL_KEYS.contains(&name) { name.to_owned() } else { key_path("protocol", name) }
}

//! [`Protocols`]: the protocols that upstreams may speak, by name.

use super::Protocol;
use crate::conf::{self, ConfError, SettingsError, near};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Makes a protocol of its settings in a route.
pub(crate) type Factory =
    Box<dyn Fn(&serde_json::Value, &Scope<'_>) -> Result<Arc<dyn Protocol>, SettingsError> + Send + Sync>;

/// Where a protocol is spoken: what its maker may want to know beside its settings.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Scope<'a> {
    /// The service's name.
    pub service: &'a str,
    /// The route's name, for the log.
    pub route: &'a str,
    /// The upstream that speaks it.
    pub upstream: &'a conf::Upstream,
}

impl<'a> Scope<'a> {
    /// For tests of protocols.
    pub fn new(service: &'a str, route: &'a str, upstream: &'a conf::Upstream) -> Self {
        Scope { service, route, upstream }
    }
}

/// HTTP, those of the build's features, and those that a binary registers.
#[derive(Default)]
pub(crate) struct Protocols {
    factories: BTreeMap<String, Factory>,
}

impl Protocols {
    /// [`Millpond::protocol`](crate::Millpond::protocol).
    pub(crate) fn add(&mut self, name: &str, factory: Factory) {
        self.factories.insert(name.to_owned(), factory);
    }

    /// What a route speaks.
    ///
    /// # Errors
    /// Its settings are wrong. An unknown protocol is the [upstream's error](Self::check): here it is `None`.
    pub(crate) fn make(
        &self,
        protocol: &conf::Protocol,
        scope: &Scope<'_>,
    ) -> Result<Option<Arc<dyn Protocol>>, ConfError> {
        let Some(factory) = self.factories.get(&protocol.name) else { return Ok(None) };
        let made = factory(&protocol.conf, scope);
        made.map(Some).map_err(|error| error.at(&protocol.path, &protocol.conf, protocol.place))
    }

    /// Is there a protocol of the name that this upstream has?
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn check(&self, upstream: &conf::Upstream) -> Result<(), ConfError> {
        let name = &upstream.protocol;
        if self.factories.contains_key(name) {
            return Ok(());
        }
        let known: Vec<&str> = self.factories.keys().map(String::as_str).collect();
        let hint = match conf::PROTOCOL_KEYS.contains(&name.as_str()) {
            true => format!(", {name} is not in this build (cargo feature {name})"),
            false => near::question(&near::matches(name, known.iter().copied())),
        };
        Err(ConfError {
            file: String::new(),
            path: format!("upstreams.{}.protocol", upstream.name),
            found: format!("the unknown protocol {name}"),
            expected: format!("one of {}{hint}", known.join(", ")),
            place: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::Millpond;
    use crate::conf::Conf;
    use crate::error::{Error, ErrorKind};
    use crate::protocol::http1::Http1;
    use serde::Deserialize;

    /// What is wrong with a file whose only route leads to an upstream of this protocol.
    fn errors(protocol: &str, route: &str) -> String {
        let file = format!(
            "upstreams:\n  app: {{ servers: ['127.0.0.1:1'], protocol: {protocol} }}\n\
             services:\n  - name: web\n    listen: ['127.0.0.1:0']\n    routes:\n      - {{ upstream: app{route} }}\n"
        );
        let millpond = Millpond::new().protocol("needy", |conf: Needy, scope| {
            assert_eq!((scope.service, scope.route, scope.upstream.name.as_str()), ("web", "/", "app"));
            if conf.user == "root" { Err(Error::new(ErrorKind::Internal, "a user other than root")) } else { Ok(Http1) }
        });
        let built = millpond.build(&Conf::parse(&file, "x.yaml").unwrap(), &[]);
        built.err().map(|errors| errors.to_string()).unwrap_or_default()
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Needy {
        user: String,
    }

    #[test]
    fn an_unknown_protocol_is_told_where_it_stands() {
        let known = errors("htpt", "");
        assert!(known.starts_with("x.yaml:2:"), "{known}");
        assert!(known.contains("upstreams.app.protocol: found the unknown protocol htpt, expected one of "), "{known}");
        assert!(known.contains(" http, "), "{known}");
        assert!(known.ends_with(", did you mean http?"), "{known}");
    }

    #[test]
    fn settings_are_checked_by_their_protocol() {
        assert_eq!(errors("needy", ", protocol: { needy: { user: me } }"), "");
        let path = "x.yaml:7:9: services[0].routes[0].protocol.needy: found a mapping, expected the key `user`";
        assert_eq!(errors("needy", ""), path);
        let wrong = errors("needy", ", protocol: { needy: { user: root } }");
        assert!(wrong.ends_with("protocol.needy: found a mapping, expected a user other than root"), "{wrong}");
        let unknown = errors("needy", ", protocol: { needy: { user: me, usr: you } }");
        assert!(unknown.contains("protocol.needy.usr: found unknown field `usr`, expected `user`"), "{unknown}");
    }
}

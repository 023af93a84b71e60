//! An internal redirect from inside the onion.

use super::{Chain, Pass};
use std::sync::Arc;

impl Pass<'_> {
    /// The session has been redirected to another route. The filters entered so far stay around it, with their
    /// contexts, and see the response; the route's own filters stand inside of them and are about to be entered. The
    /// service's are not among those: every route begins with them.
    pub(crate) fn redirected(&mut self) {
        let route = self.session.route_arc().clone();
        let of_service = self.session.service().no_route.chain.len();
        let own = &route.own_chain.filters;
        let (entered, others) = self.chain.filters.split_at(self.entered);
        self.passed_over.extend(others.iter().cloned().zip(self.contexts.split_off(self.entered)));
        self.contexts.extend(own.iter().map(|filter| filter.phases.new_ctx()));
        self.past = of_service.min(self.entered)..self.entered;
        self.chain = Arc::new(Chain::new(entered.iter().chain(own).cloned()));
        self.held = None;
        self.session.take_held_header();
        // A redirect has no body.
        self.request_body_over = true;
    }
}

//! A name server whose answers the test changes.

use super::within;
use std::net::{Ipv4Addr, SocketAddr};
use tokio::net::UdpSocket;
use tokio::sync::watch;

/// What it says of every name.
#[derive(Clone, Debug)]
pub enum Says {
    /// These addresses, good for so many seconds.
    Addresses(Vec<Ipv4Addr>, u32),
    ServFail,
    NxDomain,
    /// Nothing at all.
    Silence,
}

/// These addresses in 127.0.0.0/8, by their last number, good for a second.
pub fn at(last: &[u8]) -> Says {
    Says::Addresses(last.iter().map(|last| Ipv4Addr::new(127, 0, 0, *last)).collect(), 1)
}

/// A name server on its own task.
pub struct NameServer {
    pub address: SocketAddr,
    says: watch::Sender<Says>,
    lookups: watch::Receiver<usize>,
}

impl NameServer {
    pub async fn start(says: Says) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let (says, answers) = watch::channel(says);
        let (count, lookups) = watch::channel(0);
        tokio::spawn(async move {
            let mut query = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut query).await {
                let says = answers.borrow().clone();
                let (answer, is_a) = answer(&query[..length], &says);
                count.send_modify(|count| *count += usize::from(is_a));
                if !matches!(says, Says::Silence) {
                    socket.send_to(&answer, client).await.unwrap();
                }
            }
        });
        NameServer { address, says, lookups }
    }

    /// From now on.
    pub fn says(&self, says: Says) {
        self.says.send_replace(says);
    }

    /// Wait until the count of questions for IPv4 addresses satisfies `test`. A question may be asked twice.
    pub async fn wait(&self, what: &str, test: impl Fn(usize) -> bool) {
        let mut lookups = self.lookups.clone();
        within(what, lookups.wait_for(|count| test(*count))).await.unwrap();
    }

    /// Wait for so many more of them.
    pub async fn asked_again(&self, times: usize) {
        let goal = *self.lookups.borrow() + times;
        self.wait(&format!("{times} more lookups"), |count| count >= goal).await;
    }
}

/// The answer to a query (RFC 1035 4.1), and whether an IPv4 address was asked for; there are none of IPv6.
fn answer(query: &[u8], says: &Says) -> (Vec<u8>, bool) {
    const HEADER: usize = 12;
    const TYPE_A: [u8; 2] = [0, 1];
    let name_end = HEADER + query[HEADER..].iter().position(|byte| *byte == 0).unwrap() + 1;
    let question = &query[HEADER..name_end + 4];
    let is_a = question[question.len() - 4..].starts_with(&TYPE_A);
    let (addresses, ttl, code) = match says {
        Says::Addresses(addresses, ttl) if is_a => (addresses.as_slice(), *ttl, 0),
        Says::Addresses(..) | Says::Silence => (&[][..], 0, 0),
        Says::ServFail => (&[][..], 0, 2),
        Says::NxDomain => (&[][..], 0, 3),
    };
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1, 0, addresses.len() as u8, 0, 0, 0, 0]);
    answer.extend(question);
    for address in addresses {
        answer.extend([0xc0, HEADER as u8, 0, 1, 0, 1]);
        answer.extend(ttl.to_be_bytes());
        answer.extend([0, 4]);
        answer.extend(address.octets());
    }
    (answer, is_a)
}

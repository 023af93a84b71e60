//! What a codec sends, as the tests of codecs look at it.

use super::{BodyLength, Protocol, Request};
use crate::error::Result;
use bytes::{Bytes, BytesMut};
use pingora_http::RequestHeader;

/// All that goes over a new connection for this request, whose body comes in these chunks.
pub(super) fn sent(
    protocol: &dyn Protocol,
    header: &RequestHeader,
    length: BodyLength,
    chunks: &[&'static str],
) -> Result<String> {
    let mut codec = protocol.codec();
    let (mut head, mut wire, mut body) = (BytesMut::new(), BytesMut::new(), Vec::new());
    codec.create_request(&Request::new(header, length, &()), &mut head)?;
    codec.new_connection(&mut wire);
    wire.extend_from_slice(&head);
    for (index, chunk) in chunks.iter().enumerate() {
        codec.request_body(Bytes::from_static(chunk.as_bytes()), index + 1 == chunks.len(), &mut body);
    }
    body.iter().for_each(|piece| wire.extend_from_slice(piece));
    Ok(String::from_utf8(wire.to_vec()).expect("the tests send text"))
}

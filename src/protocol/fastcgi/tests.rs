//! Answers in every kind of pieces.

use super::super::split_check::{Answer, End, check, check_seeds, read};
use super::*;
use pingora_http::RequestHeader;
use proptest::prelude::*;

const END: &[u8] = b"\x01\x03\x00\x01\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";

fn fastcgi() -> FastCgi {
    FastCgi::new(FastCgiConf::default(), "web/app").unwrap()
}

fn get() -> RequestHeader {
    RequestHeader::build("GET", b"/", None).unwrap()
}

fn padded(kind: u8, content: &[u8], padding: u8) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[1, kind, 0, 1, high, low, padding, 0], content, &vec![0xee; padding.into()]].concat()
}

fn stdout(content: &str) -> Vec<u8> {
    padded(6, content.as_bytes(), 0)
}

fn answer(wire: &[u8]) -> Answer {
    check(&fastcgi(), &get(), wire, &[1])
}

#[test]
fn an_answer_ends_with_its_request() {
    let truncated = || End::Failed(ErrorKind::Truncated);
    let header = || stdout("A: b\r\n\r\nbo");
    let with_length = stdout("Content-Length: 2\r\n\r\nbo");
    for (wire, body, end) in [
        ([header(), stdout("dy"), END.to_vec()].concat(), "body", End::Done),
        ([header(), stdout(""), END.to_vec()].concat(), "bo", End::Done),
        ([stdout("A: b\r\n"), stdout("\r"), stdout("\n"), END.to_vec()].concat(), "", End::Done),
        ([padded(6, b"A: b\n\nbody", 6), padded(3, &[0, 0, 0, 9, 0, 0, 0, 0], 8)].concat(), "body", End::Done),
        // An application that exits with an error has answered all the same.
        ([header(), padded(3, &[0, 0, 0, 1, 0, 0, 0, 0], 0)].concat(), "bo", End::Done),
        // What is flushed without being anything is not the end.
        ([header(), stdout(""), stdout("dy"), END.to_vec()].concat(), "body", End::Done),
        // The end of the output, or of what Content-Length says, will do.
        ([header(), stdout("")].concat(), "bo", End::Closed),
        (with_length.clone(), "bo", End::Closed),
        (header(), "bo", truncated()),
        ([header(), stdout(""), stdout("dy")].concat(), "body", truncated()),
        ([header(), END[..12].to_vec()].concat(), "bo", truncated()),
        ([header(), stdout("body")[..10].to_vec()].concat(), "bobo", truncated()),
    ] {
        let answer = answer(&wire);
        assert_eq!(
            (answer.body.escape_ascii().to_string().as_str(), &answer.end),
            (body, &end),
            "{}",
            wire.escape_ascii()
        );
    }
}

#[test]
fn what_is_not_output_is_not_in_the_answer() {
    let about_the_connection = [&[1, 10, 0, 0, 0, 4, 0, 0][..], b"\x00\x00ok"].concat();
    let noise =
        [padded(7, b"PHP message: oh", 1), padded(7, b"", 0), padded(42, b"new", 5), about_the_connection].concat();
    let wire =
        [&noise[..], &stdout("A: b\r\n"), &noise, &stdout("\r\nbo"), &noise, &stdout("dy"), &noise, END].concat();
    let answer = answer(&wire);
    assert_eq!((answer.body.as_slice(), answer.end), (&b"body"[..], End::Done));
    assert_eq!(answer.headers.len(), 1);
}

#[test]
fn what_is_no_fastcgi_is_invalid() {
    let header = stdout("A: b\r\n\r\n");
    for (wire, kind) in [
        (b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), ErrorKind::InvalidHeader),
        (b"\x02\x06\x00\x01\x00\x00\x00\x00".to_vec(), ErrorKind::InvalidHeader),
        (b"\x01\x06\x00\x02\x00\x00\x00\x00".to_vec(), ErrorKind::InvalidHeader),
        (b"\x01\x06\x01\x01\x00\x00\x00\x00".to_vec(), ErrorKind::InvalidHeader),
        (b"\x01\x03\x00\x01\x00\x07\x00\x00".to_vec(), ErrorKind::InvalidHeader),
        (b"\x01\x03\x00\x01\x00\x00\x00\x00".to_vec(), ErrorKind::InvalidHeader),
        (END.to_vec(), ErrorKind::InvalidHeader),
        ([stdout("A: b\r\n"), END.to_vec()].concat(), ErrorKind::InvalidHeader),
        (stdout("no header\r\n\r\n"), ErrorKind::InvalidHeader),
        ([header.clone(), b"garbage!".to_vec()].concat(), ErrorKind::InvalidBody),
        ([header.clone(), b"\x01\x06\x00\x07\x00\x00\x00\x00".to_vec()].concat(), ErrorKind::InvalidBody),
        ([header, padded(3, &[0, 0, 0, 0, 2, 0, 0, 0], 0)].concat(), ErrorKind::InvalidBody),
    ] {
        assert_eq!(answer(&wire).end, End::Failed(kind), "{}", wire.escape_ascii());
    }
}

#[test]
fn what_fuzzing_has_found_reads_the_same_in_pieces() {
    check_seeds("fastcgi_response", &fastcgi(), &[get()]);
}

#[test]
fn a_refused_request_is_for_another_peer() {
    let wire = padded(3, &[0, 0, 0, 0, 2, 0, 0, 0], 0);
    assert_eq!(answer(&wire).end, End::Failed(ErrorKind::Unavailable));
    assert!(refused(2).to_string().ends_with("FCGI_OVERLOADED (2)"));
}

/// A codec that has created the request; and the request.
fn created(keepalive: bool) -> (Box<dyn Codec>, BytesMut) {
    let (mut codec, mut out, header) = (fastcgi().codec(), BytesMut::new(), get());
    let request = Request::new(&header, BodyLength::None, &()).keepalive(keepalive);
    codec.create_request(&request, &mut out).unwrap();
    (codec, out)
}

#[test]
fn a_connection_is_kept_if_nothing_is_behind_the_answer() {
    let wire = [&stdout("A: b\r\n\r\n")[..], END].concat();
    for (keepalive, more, kept) in [(true, &b""[..], true), (true, b"x", false), (false, b"", false)] {
        let (mut codec, out) = created(keepalive);
        assert_eq!(out[..11], [1, 1, 0, 1, 0, 8, 0, 0, 0, 1, keepalive.into()]);
        let mut received = [&wire[..], more].concat();
        let length = loop {
            match codec.process_header(&received).unwrap() {
                Parsed::Consumed(length) | Parsed::Skipped(length) => drop(received.drain(..length)),
                Parsed::Done(_, length) => break length,
                other => panic!("{other:?}"),
            }
        };
        let input = codec.input_filter(&mut received[length..]).unwrap();
        assert_eq!((input, codec.keepalive()), (Input { body: 0, done: true }, kept));
    }
}

#[test]
fn a_body_of_unknown_length_cannot_be_said() {
    let header = get();
    let request = Request::new(&header, BodyLength::Unknown, &());
    assert_eq!(fastcgi().codec().create_request(&request, &mut BytesMut::new()).unwrap_err().status(), 411);
}

#[test]
fn the_last_word_is_to_stop() {
    let (mut codec, mut out) = created(true);
    out.clear();
    codec.abort(&mut out);
    assert_eq!(out, &b"\x01\x02\x00\x01\x00\x00\x00\x00"[..]);
}

#[test]
fn settings_have_to_go_together() {
    let made = |settings: &str| FastCgi::new(serde_json::from_str(settings).unwrap(), "x").map(drop);
    made(r#"{ "root": "/srv", "index": "app.py" }"#).unwrap();
    made(r#"{ "root": "/srv", "index": "app", "split_path_info": "^(/app)(/.*)$" }"#).unwrap();
    assert!(made(r#"{ "index": "app.py" }"#).unwrap_err().to_string().starts_with("`root`"));
    assert!(made(r#"{ "root": "/srv", "index": "app" }"#).unwrap_err().to_string().starts_with("`split_path_info`"));
}

/// Records of all kinds, mostly in an order that makes sense.
fn records() -> impl Strategy<Value = Vec<u8>> {
    let header =
        prop::sample::select(vec!["A: b\r\n\r\n", "Status: 404\n\nx", "Location: /\r\n", "Content-Length: 9\n\n"]);
    let record =
        (prop::sample::select(vec![6_u8, 6, 6, 7, 3, 11, 99]), prop::collection::vec(any::<u8>(), 0..40), 0..9_u8);
    let records = prop::collection::vec(record, 0..8);
    (header, records, any::<bool>(), prop::collection::vec(any::<u8>(), 0..4)).prop_map(
        |(header, records, end, more)| {
            let mut wire = stdout(header);
            for (kind, content, padding) in records {
                wire.extend(padded(kind, &content, padding));
            }
            if end {
                wire.extend_from_slice(END);
            }
            wire.extend(more);
            wire
        },
    )
}

proptest! {
    #[test]
    fn it_does_not_matter_in_what_pieces_an_answer_comes(
        wire in records(),
        sizes in prop::collection::vec(1..40_usize, 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        check(&fastcgi(), &get(), &wire, &[1]);
        check(&fastcgi(), &get(), &wire, &sizes);
        check(&fastcgi(), &get(), wire.get(..cut.index(wire.len())).unwrap_or_default(), &sizes);
    }

    #[test]
    fn no_bytes_are_too_strange(wire in prop::collection::vec(any::<u8>(), 0..200), at in 0..40_usize) {
        read(&fastcgi(), &get(), &wire, &[7]);
        let mut wire = [&stdout("A: b\r\n\r\nbody")[..], &wire].concat();
        let last = wire.len() - 1;
        wire.swap(0, at.min(last));
        check(&fastcgi(), &get(), &wire, &[3]);
    }
}

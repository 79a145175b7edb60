//! The NBD client against servers that lie.

use std::path::PathBuf;

use blockd::cli::nbd_client::{NbdClient, NbdError, Reply, Request};
use nbd_server::wire::{
    Errno, NBD_MAGIC, OPTION_MAGIC, ReplyForm, ReplyTo, RequestHeader, chunk, info, option, option_reply,
    option_reply_type,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

const SIZE: u64 = 1 << 20;

/// A request's answer, made from its cookie.
type Answer = fn(u64) -> Vec<u8>;

/// Greets and agrees, then answers the first request with these bytes, made from its cookie.
async fn liar(structured: bool, answer: Answer) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbd");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        greet(&mut stream, structured).await;
        let mut header = [0; 28];
        stream.read_exact(&mut header).await.unwrap();
        let cookie = RequestHeader::parse(&header).unwrap().cookie;
        stream.write_all(&answer(cookie)).await.unwrap();
        // Until the client leaves.
        drop(stream.read_exact(&mut header).await);
    });
    (dir, socket)
}

async fn greet(stream: &mut UnixStream, structured: bool) {
    stream.write_u64(NBD_MAGIC).await.unwrap();
    stream.write_u64(OPTION_MAGIC).await.unwrap();
    stream.write_u16(3).await.unwrap();
    stream.read_u32().await.unwrap();
    for number in [option::STRUCTURED_REPLY, option::GO] {
        stream.read_u64().await.unwrap();
        assert_eq!(stream.read_u32().await.unwrap(), number);
        let length = stream.read_u32().await.unwrap();
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data).await.unwrap();
        let mut reply = Vec::new();
        if number == option::GO {
            let mut export = info::EXPORT.to_be_bytes().to_vec();
            export.extend_from_slice(&SIZE.to_be_bytes());
            export.extend_from_slice(&5u16.to_be_bytes());
            option_reply(&mut reply, number, option_reply_type::INFO, &export);
        }
        let refused = number == option::STRUCTURED_REPLY && !structured;
        let kind = if refused { option_reply_type::ERR_UNSUP } else { option_reply_type::ACK };
        option_reply(&mut reply, number, kind, &[]);
        stream.write_all(&reply).await.unwrap();
    }
}

/// Reads 8 KiB at 4096 from a server that answers so.
async fn read(structured: bool, answer: Answer) -> Result<Vec<Reply>, NbdError> {
    let (_dir, socket) = liar(structured, answer).await;
    let mut client = NbdClient::connect(&socket, "web").await?;
    assert_eq!(client.size(), SIZE);
    let (sender, requests) = mpsc::channel(1);
    sender.send(Request::Read { offset: 4096, length: 8192 }).await.unwrap();
    drop(sender);
    let mut replies = Vec::new();
    client
        .run(requests, |reply| {
            replies.push(reply);
            Ok(())
        })
        .await?;
    Ok(replies)
}

fn to(cookie: u64) -> ReplyTo {
    ReplyTo { form: ReplyForm::Structured, cookie, offset: 4096 }
}

fn simple_reply(cookie: u64) -> Vec<u8> {
    ReplyTo { form: ReplyForm::Simple, ..to(cookie) }.nothing(false).to_vec()
}

fn data(cookie: u64, done: bool, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = to(cookie).data(done, offset, length).to_vec();
    bytes.resize(bytes.len() + length as usize, 1);
    bytes
}

#[tokio::test]
async fn data_and_holes_are_told_apart() {
    let replies = read(true, |cookie| {
        [data(cookie, false, 8192, 4096), to(cookie).hole(true, 4096, 4096).to_vec()].concat()
    });
    let replies = replies.await.unwrap();
    assert!(matches!(replies[0], Reply::Data { offset: 8192, .. }), "{replies:?}");
    assert_eq!(replies[1], Reply::Hole { offset: 4096, length: 4096 });
    let replies = read(false, |cookie| [simple_reply(cookie), vec![1; 8192]].concat()).await.unwrap();
    assert!(matches!(&replies[0], Reply::Data { offset: 4096, data } if data.len() == 8192));
}

#[tokio::test]
async fn a_lying_server_is_not_believed() {
    let lies: [(&str, Answer); 13] = [
        ("before the range", |cookie| data(cookie, true, 0, 8192)),
        ("past the range", |cookie| data(cookie, true, 8192, 8192)),
        ("an offset that overflows", |cookie| data(cookie, true, u64::MAX - 10, 8192)),
        ("in part", |cookie| data(cookie, true, 4096, 4096)),
        ("twice", |cookie| [data(cookie, false, 4096, 8192), data(cookie, true, 4096, 4096)].concat()),
        ("one half twice", |cookie| {
            [data(cookie, false, 4096, 4096), data(cookie, true, 4096, 4096)].concat()
        }),
        ("a hole that is too large", |cookie| to(cookie).hole(true, 4096, u32::MAX).to_vec()),
        ("an empty hole", |cookie| to(cookie).hole(false, 4096, 0).to_vec()),
        ("a hole of the wrong length", |cookie| to(cookie).chunk(chunk::OFFSET_HOLE, true, 13).to_vec()),
        ("another's cookie", |cookie| data(cookie + 1, true, 4096, 8192)),
        ("a simple reply", |cookie| simple_reply(cookie)),
        ("an endless message", |cookie| to(cookie).chunk(chunk::ERROR, true, u64::from(u32::MAX)).to_vec()),
        ("no magic", |_| vec![0; 64]),
    ];
    for (lie, answer) in lies {
        let result = read(true, answer).await;
        assert!(matches!(result, Err(NbdError::Protocol(_))), "{lie}: {result:?}");
    }
}

#[tokio::test]
async fn a_refusal_is_told_in_words() {
    let error = read(true, |cookie| to(cookie).error(Errno::Io, true).to_vec());
    let text = error.await.unwrap_err().to_string();
    assert_eq!(text, "the NBD server refused a read: Input/output error (os error 5)");
}

#[tokio::test]
async fn requests_that_do_not_fit_are_not_sent() {
    let (_dir, socket) = liar(true, |_| Vec::new()).await;
    let mut client = NbdClient::connect(&socket, "web").await.unwrap();
    let (sender, requests) = mpsc::channel(1);
    sender.send(Request::Read { offset: SIZE - 4096, length: 8192 }).await.unwrap();
    drop(sender);
    assert!(matches!(client.run(requests, |_| Ok(())).await, Err(NbdError::Local(_))));
}

//! Tokens: what they let in, how often, and whom not.

use blockd::peer::{NewToken, PairRequest, PeerErrorKind, Token};
use std::time::Duration;

use crate::forge::{self, Ca};
use crate::host::{Host, echo, pair};

#[tokio::test]
async fn two_hosts_are_paired_once() {
    let (a, b) = (Host::new("A").await, Host::new("B").await);
    let token = b.token();
    let paired = a.join(&token).await.unwrap();
    assert_eq!((paired.name.as_str(), paired.id), ("B", b.peers.host_id()));
    let (seen, _) = b.peers.show("A").unwrap();
    assert_eq!((seen.id, seen.addresses), (a.peers.host_id(), vec![a.address.to_string()]));
    assert!(b.event("host_paired").await.starts_with("A: "));
    echo(&mut a.peers.connect("B").await.unwrap()).await.unwrap();
    echo(&mut b.peers.connect("A").await.unwrap()).await.unwrap();
    // The token was for one use, whoever comes.
    let c = Host::new("C").await;
    for host in [&a, &c] {
        let error = host.join(&token).await.unwrap_err();
        assert_eq!(error.kind, PeerErrorKind::Refused, "{error}");
        assert!(error.to_string().contains("the token is not open"), "{error}");
    }
    assert!(b.peers.show("C").is_err() && c.peers.list().is_empty());
}

#[tokio::test]
async fn what_was_paired_is_there_after_a_restart() {
    let (a, b) = pair().await;
    let (id, dir) = (a.peers.host_id(), a.stop());
    let a = Host::at(dir, "A", Default::default()).await;
    assert_eq!(a.peers.host_id(), id);
    echo(&mut a.peers.connect("B").await.unwrap()).await.unwrap();
    let dir = b.stop();
    let b = Host::at(dir, "B", Default::default()).await;
    // It has another port now.
    let addresses = Some(vec!["127.0.0.1:1".to_owned(), b.address.to_string()]);
    a.peers.trust("B", true, addresses).await.unwrap();
    assert_eq!(a.peers.check("B").await.unwrap().address, b.address.to_string());
}

#[tokio::test]
async fn a_token_ends() {
    let (a, b) = (Host::new("A").await, Host::new("B").await);
    let token = b.peers.new_token(NewToken { time_max: Duration::ZERO, ..NewToken::default() }).unwrap();
    let error = a.join(&token.to_text()).await.unwrap_err();
    assert!(error.to_string().contains("the token is not open"), "{error}");
    assert!(b.peers.list().is_empty() && a.peers.list().is_empty());
    let long = NewToken { time_max: Duration::from_secs(86_401), ..NewToken::default() };
    assert_eq!(b.peers.new_token(long).unwrap_err().kind, PeerErrorKind::BadValue);
}

#[tokio::test]
async fn so_many_tokens_are_open_at_once() {
    let b = Host::new("B").await;
    let tokens: Vec<String> = (0..8).map(|_| b.token()).collect();
    let more = NewToken { time_max: Duration::from_secs(60), ..NewToken::default() };
    assert_eq!(b.peers.new_token(more.clone()).unwrap_err().kind, PeerErrorKind::Busy);
    Host::new("A").await.join(&tokens[7]).await.unwrap();
    b.peers.new_token(more).unwrap();
}

#[tokio::test]
async fn a_token_is_of_one_host() {
    let (a, b, c) = (Host::new("A").await, Host::new("B").await, Host::new("C").await);
    // C's token, but B answers at the address.
    let terms = NewToken { addresses: vec![b.address.to_string()], ..NewToken::default() };
    let error = a.join(&c.token_with(terms)).await.unwrap_err();
    assert_eq!(error.kind, PeerErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("not the host that we expect"), "{error}");
    let error = b.join(&b.token()).await.unwrap_err();
    assert!(error.to_string().contains("of this host"), "{error}");
    for host in [&a, &b, &c] {
        assert!(host.peers.list().is_empty());
    }
}

#[tokio::test]
async fn nobody_at_the_address() {
    let (a, b) = (Host::new("A").await, Host::new("B").await);
    let token = b.token();
    drop(b.stop());
    tokio::task::yield_now().await;
    let error = a.join(&token).await.unwrap_err();
    assert_eq!(error.kind, PeerErrorKind::Unreachable, "{error}");
}

#[tokio::test]
async fn a_typing_error_is_named() {
    let b = Host::new("B").await;
    let token = b.token();
    assert_eq!(token.parse::<Token>().unwrap().to_text(), token);
    assert!(format!(" {token}\n").parse::<Token>().is_ok());
    for at in 0..token.len() {
        let mut wrong = token.clone().into_bytes();
        wrong[at] = if wrong[at] == b'x' { b'y' } else { b'x' };
        let error = String::from_utf8(wrong).unwrap().parse::<Token>().unwrap_err();
        assert_eq!(error.kind, PeerErrorKind::BadValue, "{at}");
    }
    for wrong in ["", "bp1.", "bp2.AAAA", &token[..token.len() - 4], &"x".repeat(9000), "bp1.é"] {
        assert_eq!(wrong.parse::<Token>().unwrap_err().kind, PeerErrorKind::BadValue, "{wrong}");
    }
    assert!(!format!("{:?}", token.parse::<Token>().unwrap()).contains(&token[4..20]));
}

/// What a forger says who has seen the token's public part only.
#[tokio::test]
async fn a_wrong_proof_is_refused_and_five_end_the_token() {
    let (a, b) = (Host::new("A").await, Host::new("B").await);
    let token = b.token();
    let id = token_id(&token);
    let forger = Ca::new(&"11".repeat(16));
    let client = forger.client(&[&forger.id], (-1, 1));
    for round in 0..5 {
        let mut stream = client.connect(b.address, b"blockd-pair/1").await.unwrap();
        forge::say(&mut stream, &join(&id, &"00".repeat(32))).await;
        let answer = forge::hear(&mut stream).await.unwrap();
        assert!(answer.contains("the token is not open"), "{round}: {answer}");
    }
    assert!(b.peers.list().is_empty());
    // Even with the right secret now.
    let error = a.join(&token).await.unwrap_err();
    assert!(error.to_string().contains("the token is not open"), "{error}");
    assert!(b.event("peer_refused").await.contains("127.0.0.1: the token is not open"));
}

/// Fewer do not: a stranger who knows no token cannot end one either.
#[tokio::test]
async fn strangers_do_not_end_tokens() {
    let (a, b) = (Host::new("A").await, Host::new("B").await);
    let token = b.token();
    let forger = Ca::new(&"11".repeat(16));
    let client = forger.client(&[&forger.id], (-1, 1));
    for round in 0..10 {
        // Four wrong proofs for it, the others for none that is open.
        let id = if round < 4 { token_id(&token) } else { "ab".repeat(8) };
        let mut stream = client.connect(b.address, b"blockd-pair/1").await.unwrap();
        forge::say(&mut stream, &join(&id, &"00".repeat(32))).await;
        forge::hear(&mut stream).await.unwrap();
    }
    a.join(&token).await.unwrap();
}

/// The proof is of one connection and of both hosts: on another one it is worth nothing.
#[tokio::test]
async fn a_proof_cannot_be_carried_over() {
    let b = Host::new("B").await;
    let token = b.token();
    let forger = Ca::new(&"11".repeat(16));
    let client = forger.client(&[&forger.id], (-1, 1));
    let right = |exporter: [u8; 32], id: &str, ca: &[u8]| {
        proof(
            &token,
            1,
            exporter,
            (id, ca),
            (&b.peers.host_id().to_string(), &Ca::of(b.dir.path()).certificate),
        )
    };
    let cases = ["another connection", "another host", "another CA", "the other side's proof", "right"];
    for case in cases {
        let mut stream = client.connect(b.address, b"blockd-pair/1").await.unwrap();
        let mut exporter = [0; 32];
        if case != "another connection" {
            let label = b"EXPORTER-blockd-pair-1";
            exporter = stream.get_ref().1.export_keying_material([0; 32], label, None).unwrap();
        }
        let id = if case == "another host" { "22".repeat(16) } else { forger.id.clone() };
        let ca = if case == "another CA" { b"x".as_slice() } else { &forger.certificate };
        let mut sent = right(exporter, &id, ca);
        if case == "the other side's proof" {
            let own = (b.peers.host_id().to_string(), Ca::of(b.dir.path()).certificate);
            sent = proof(&token, 2, exporter, (&id, ca), (&own.0, &own.1));
        }
        forge::say(&mut stream, &join(&token_id(&token), &sent)).await;
        let answer = forge::hear(&mut stream).await.unwrap();
        let expected = if case == "right" { "\"invite\"" } else { "the token is not open" };
        assert!(answer.contains(expected), "{case}: {answer}");
    }
    assert!(b.peers.list().is_empty(), "nothing is stored before it is confirmed");
}

#[tokio::test]
async fn messages_that_are_none_are_refused() {
    let b = Host::new("B").await;
    let forger = Ca::new(&"11".repeat(16));
    let client = forger.client(&[&forger.id], (-1, 1));
    for message in
        ["", "{}", "[[[[", "{\"confirm\":{}}", "{\"join\":{}}", "{\"refused\":{\"message\":\"\\u001b[2J\"}}"]
    {
        let mut stream = client.connect(b.address, b"blockd-pair/1").await.unwrap();
        forge::say(&mut stream, message).await;
        let answer = forge::hear(&mut stream).await.unwrap();
        assert!(answer.starts_with("{\"refused\":") && !answer.contains('\u{1b}'), "{message}: {answer}");
    }
    use tokio::io::AsyncWriteExt;
    let mut stream = client.connect(b.address, b"blockd-pair/1").await.unwrap();
    stream.write_u32(65_537).await.unwrap();
    stream.flush().await.unwrap();
    assert!(forge::hear(&mut stream).await.unwrap().contains("refused"));
}

#[tokio::test]
async fn names_are_unique_here() {
    let (a, b, other) = (Host::new("A").await, Host::new("B").await, Host::new("A").await);
    a.pair_with(&b).await;
    let error = other.join(&b.token()).await.unwrap_err();
    assert!(error.to_string().contains("the name A is that of another host"), "{error}");
    assert!(other.peers.list().is_empty(), "one side alone knows nobody");
    let as_a2 = NewToken { name: Some("A2".to_owned()), ..NewToken::default() };
    other.join(&b.token_with(as_a2)).await.unwrap();
    assert_eq!(b.peers.show("A2").unwrap().0.id, other.peers.host_id());
    // On the joining side it is found before the other one has stored anything.
    let b2 = Host::new("B").await;
    let error = a.join(&b2.token()).await.unwrap_err();
    assert_eq!(error.kind, PeerErrorKind::Exists, "{error}");
    assert!(b2.event("peer_refused").await.contains("broke off"));
    assert!(b2.peers.list().is_empty());
    let request =
        |name: &str| PairRequest { token: b2.token(), name: Some(name.to_owned()), ..PairRequest::default() };
    assert_eq!(a.peers.pair(request("../x")).await.unwrap_err().kind, PeerErrorKind::BadName);
    assert_eq!(a.peers.pair(request("B2")).await.unwrap().name, "B2");
}

#[tokio::test]
async fn pairing_again_brings_new_addresses() {
    let (a, b) = pair().await;
    let terms =
        NewToken { addresses: vec!["127.0.0.1:1".to_owned(), b.address.to_string()], ..NewToken::default() };
    let request = PairRequest {
        token: b.token_with(terms),
        name: Some("beta".to_owned()),
        addresses: vec!["a.example:10900".to_owned()],
        ..PairRequest::default()
    };
    a.peers.pair(request).await.unwrap();
    assert_eq!(a.peers.list().len(), 1);
    assert_eq!(b.peers.list().len(), 1);
    let (beta, _) = a.peers.show("beta").unwrap();
    // As the token's maker has said, not where it listens: links must not go past what is in between.
    assert_eq!(
        (beta.id, beta.addresses),
        (b.peers.host_id(), vec!["127.0.0.1:1".to_owned(), b.address.to_string()])
    );
    assert_eq!(b.peers.show("A").unwrap().0.addresses, ["a.example:10900"]);
}

/// Identities are no secrets: with a token that was meant for somebody else, nobody takes a paired host's place.
#[tokio::test]
async fn a_new_ca_needs_consent() {
    let (a, b) = pair().await;
    let id = a.peers.host_id().to_string();
    let forger = Ca::new(&id);
    let client = forger.client(&[&id], (-1, 1));
    let own = (b.peers.host_id().to_string(), Ca::of(b.dir.path()).certificate);
    let mut link = b.peers.connect("A").await.unwrap();
    for (replace, expected) in [(None, "known with another CA"), (Some("A".to_owned()), "stored")] {
        let token = b.token_with(NewToken { replace, ..NewToken::default() });
        let mut stream = client.connect(b.address, b"blockd-pair/1").await.unwrap();
        let exporter =
            stream.get_ref().1.export_keying_material([0; 32], b"EXPORTER-blockd-pair-1", None).unwrap();
        let sent = proof(&token, 1, exporter, (&id, &forger.certificate), (&own.0, &own.1));
        forge::say(&mut stream, &join(&token_id(&token), &sent)).await;
        let mut answer = forge::hear(&mut stream).await.unwrap();
        if answer.contains("invite") {
            echo(&mut link).await.unwrap();
            forge::say(&mut stream, "{\"confirm\":{}}").await;
            answer = forge::hear(&mut stream).await.unwrap();
        }
        assert!(answer.contains(expected), "{answer}");
    }
    assert!(echo(&mut link).await.is_err(), "a link that the old CA has opened stands");
    // A token to replace one host is for no other.
    let c = Host::new("C").await;
    let only_a = NewToken { replace: Some("A".to_owned()), ..NewToken::default() };
    assert!(c.join(&b.token_with(only_a)).await.unwrap_err().to_string().contains("another host than"));
}

#[tokio::test]
async fn who_is_not_trusted_cannot_pair_again() {
    let (a, b) = pair().await;
    b.peers.trust("A", false, None).await.unwrap();
    let error = a.join(&b.token()).await.unwrap_err();
    assert!(error.to_string().contains("A is not trusted any more"), "{error}");
    b.peers.trust("A", true, None).await.unwrap();
    a.join(&b.token()).await.unwrap();
}

#[tokio::test]
async fn without_a_port_there_are_no_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let peers = blockd::peer::Peers::open(dir.path(), "A").unwrap();
    let terms = NewToken { time_max: Duration::from_secs(60), ..NewToken::default() };
    let error = peers.new_token(terms).unwrap_err();
    assert_eq!(error.kind, PeerErrorKind::Refused);
    // It can still use another host's.
    let b = Host::new("B").await;
    peers.pair(PairRequest { token: b.token(), ..PairRequest::default() }).await.unwrap();
    assert!(peers.connect("B").await.is_ok());
    let error = b.peers.connect("A").await.unwrap_err();
    assert_eq!(error.kind, PeerErrorKind::Unreachable, "{error}");
    assert!(error.next.unwrap().contains("--address"));
}

fn secret(token: &str) -> [u8; 16] {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(&token[4..]).unwrap();
    bytes[..16].try_into().unwrap()
}

/// As docs/replication.md says it.
fn token_id(token: &str) -> String {
    let hash = blake3::derive_key("blockd host pairing v1: token id", &secret(token));
    hash[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn proof(
    token: &str,
    prover: u8,
    exporter: [u8; 32],
    joining: (&str, &[u8]),
    inviting: (&str, &[u8]),
) -> String {
    let key = blake3::derive_key("blockd host pairing v1: proof", &secret(token));
    let mut hasher = blake3::Hasher::new_keyed(&key);
    hasher.update(&[prover]).update(&exporter);
    for (id, ca) in [joining, inviting] {
        let id = u128::from_str_radix(id, 16).unwrap().to_be_bytes();
        hasher.update(&id).update(blake3::hash(ca).as_bytes());
    }
    hasher.finalize().to_string()
}

fn join(token: &str, proof: &str) -> String {
    format!(r#"{{"join":{{"token":"{token}","proof":"{proof}","name":"forger","addresses":[]}}}}"#)
}

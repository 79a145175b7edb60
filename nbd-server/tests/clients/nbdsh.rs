//! libnbd call by call, from Python: what no well-behaved tool would send.
//!
//! The scripts speak for themselves; a failing one ends with a traceback, which becomes the test's message.

use std::fs;

use crate::server::{CACHES, Place, Server};
use crate::tools::{noise, python, run};

const MIB: usize = 1 << 20;

/// Before every script: no checks on our side, and `fails(errno, call, ...)`.
const PRELUDE: &str = r#"
import nbd, random, sys

def fails(errno, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except nbd.Error as error:
        assert error.errno == errno, f"{call.__name__}{arguments[-2:]}: {error.errno}, not {errno}"
        return
    raise AssertionError(f"{call.__name__}{arguments[-2:]} succeeded, not {errno}")

def connection(opt_mode=False):
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    handle.set_opt_mode(opt_mode)
    handle.connect_uri(sys.argv[1])
    return handle
"#;

/// Runs `script` with the server's default export; `h` is a connection.
fn shell(server: &Server, script: &str) -> String {
    handshake(server, &format!("h = connection()\n{script}\nh.shutdown()\n"))
}

/// Runs `script`, which connects itself.
fn handshake(server: &Server, script: &str) -> String {
    run(python(&format!("{PRELUDE}{script}")).arg(server.uri())).stdout
}

/// Runs `script` against 4 MiB of noise, which it must leave as they are.
fn shell_without_changes(arguments: &[&str], script: &str) {
    let place = Place::new();
    let image = place.noisy("disk.img", 4 * MIB);
    let server = place.serve(&[&["disk.img"], arguments].concat());
    shell(&server, script);
    server.stop();
    assert!(fs::read(image).unwrap() == noise(4 * MIB as u64, 4 * MIB), "the image changed");
}

#[test]
fn a_write_past_the_end_is_enospc_and_a_read_einval() {
    shell_without_changes(
        &[],
        r#"
size = h.get_size()
for offset, length in [(size, 1), (size - 1, 2), (size - 4096, 8192), (size + 4096, 4096), (2**62, 512)]:
    fails("ENOSPC", h.pwrite, b"x" * length, offset)
    fails("ENOSPC", h.zero, length, offset)
    fails("EINVAL", h.pread, length, offset)
    fails("EINVAL", h.trim, length, offset)
    fails("EINVAL", h.cache, length, offset)
fails("ENOSPC", h.pwrite, b"xx", 2**63 - 1)
fails("EINVAL", h.pread, 2, 2**63 - 1)
assert len(h.pread(1, size - 1)) == 1
"#,
    );
}

#[test]
fn unknown_flags_are_einval() {
    shell_without_changes(
        &[],
        r#"
for flag in [0x20, 0x100, 0x8000]:
    fails("EINVAL", h.pwrite, b"x" * 512, 0, flag)
    fails("EINVAL", h.zero, 512, 0, flag)
    fails("EINVAL", h.trim, 512, 0, flag)
    fails("EINVAL", h.cache, 512, 0, flag)
    fails("EINVAL", h.flush, flag)
    fails("EINVAL", h.pread_structured, 512, 0, lambda *chunk: 0, flag)
fails("EINVAL", h.pwrite, b"x" * 512, 0, nbd.CMD_FLAG_NO_HOLE)
fails("EINVAL", h.trim, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
fails("EINVAL", h.cache, 512, 0, nbd.CMD_FLAG_DF)
h.cache(512, 0, nbd.CMD_FLAG_FUA)
h.flush(nbd.CMD_FLAG_FUA)
assert len(h.pread(4096, 0)) == 4096
"#,
    );
}

#[test]
fn changes_of_a_read_only_export_are_eperm_and_change_nothing() {
    shell_without_changes(
        &["--read-only"],
        r#"
assert h.is_read_only()
fails("EPERM", h.pwrite, b"x" * 4096, 0)
fails("EPERM", h.pwrite, b"x" * 4096, 0, nbd.CMD_FLAG_FUA)
fails("EPERM", h.pwrite, b"x" * 4096, h.get_size())
fails("EPERM", h.zero, 4096, 0)
fails("EPERM", h.trim, 4096, 0)
h.flush()
h.cache(4096, 0)
assert h.pread(4096, 0) != b"x" * 4096
"#,
    );
}

#[test]
fn requests_of_zero_bytes_do_not_disconnect() {
    shell_without_changes(
        &[],
        r#"
for offset in [0, 1, 4096, h.get_size()]:
    for call, what in [(h.pwrite, b""), (h.pread, 0), (h.zero, 0), (h.trim, 0), (h.cache, 0)]:
        # Whether it is an error is the server's to say; that the connection stays is not.
        try:
            call(what, offset)
        except nbd.Error as error:
            assert error.errno in ["EINVAL", "ENOSPC"], error
        assert len(h.pread(1, 0)) == 1, "the connection is gone"
"#,
    );
}

/// Each size once, at offsets that hit every phase of a block; a model of the disk is compared at the end.
#[test]
fn every_size_up_to_9000_bytes_at_odd_offsets() {
    for cache in CACHES {
        let place = Place::new();
        let image = place.sparse("disk.img", 2 * MIB as u64);
        let server = place.serve(&["disk.img", "--cache", cache]);
        let model = place.path("model");
        let script = format!(
            r#"
random.seed(9000)
noise = random.randbytes(1 << 16)
model = bytearray(h.get_size())
for length in range(1, 9001):
    offset = (length * 7919) % (len(model) - length) | 1
    start = random.randrange(len(noise) - length)
    data = noise[start:start + length]
    h.pwrite(data, offset)
    model[offset:offset + length] = data
    if length % 3 == 0:
        before = max(0, offset - 5)
        assert h.pread(length + 5, before) == model[before:before + length + 5], (offset, length)
h.flush()
assert h.pread(len(model), 0) == model
open({model:?}, "wb").write(model)
"#
        );
        shell(&server, &script);
        server.stop();
        crate::tools::assert_same_content(&image, &model);
    }
}

#[test]
fn the_largest_payload_goes_both_ways() {
    for cache in CACHES {
        let place = Place::new();
        place.sparse("disk.img", 40 * MIB as u64);
        let server = place.serve(&["disk.img", "--cache", cache]);
        shell(
            &server,
            r#"
largest = 32 << 20
assert h.get_block_size(nbd.SIZE_MAXIMUM) == largest
for offset in [0, 4097]:
    data = random.randbytes(largest)
    h.pwrite(data, offset)
    assert h.pread(largest, offset) == data
"#,
        );
        server.stop();
    }
}

#[test]
fn a_read_beyond_the_largest_payload_is_einval_and_not_the_end() {
    let place = Place::new();
    place.sparse("disk.img", 100 * MIB as u64);
    let server = place.serve(&["disk.img"]);
    shell(
        &server,
        r#"
for length in [(32 << 20) + 1, 48 << 20, 64 << 20]:
    fails("EINVAL", h.pread, length, 0)
    fails("EINVAL", h.pwrite, bytes(length), 0)
    assert h.pread(4096, 0) == bytes(4096)
# Without a payload there is no such limit.
h.zero(100 << 20, 0)
h.trim(100 << 20, 0)
"#,
    );
    server.stop();
}

#[test]
fn trimmed_and_zeroed_ranges_read_as_zeroes() {
    for arguments in [&["disk.img"][..], &["disk.img", "--cache", "direct"], &["--memory", "4M"]] {
        let place = Place::new();
        place.sparse("disk.img", 4 * MIB as u64);
        let server = place.serve(arguments);
        shell(
            &server,
            r#"
FUA, NO_HOLE, FAST = nbd.CMD_FLAG_FUA, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO
changes = [(h.trim, 0), (h.trim, FUA)]
changes += [(h.zero, flags) for flags in [0, FUA, NO_HOLE, NO_HOLE | FUA]]
for change, flags in changes:
    for offset, length in [(0, 4 << 20), (65536, 65536), (4097, 12289), (511, 1), (4095, 2), (100, 3000)]:
        model = bytearray(random.randbytes(4 << 20))
        h.pwrite(model, 0)
        change(length, offset, flags)
        model[offset:offset + length] = bytes(length)
        assert h.pread(4 << 20, 0) == model, (change.__name__, flags, offset, length)
"#,
        );
        server.stop();
    }
}

/// `FAST_ZERO` may say `ENOTSUP`, and then nothing has changed; otherwise it has zeroed.
#[test]
fn a_fast_zero_is_done_or_refused_but_never_half() {
    for arguments in [&["disk.img"][..], &["disk.img", "--cache", "direct"], &["--memory", "4M"]] {
        let place = Place::new();
        place.sparse("disk.img", 4 * MIB as u64);
        let server = place.serve(arguments);
        let said = shell(
            &server,
            r#"
done = []
assert h.can_fast_zero()
for flags in [0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FUA]:
    for offset, length in [(0, 4 << 20), (65536, 65536), (4097, 12289)]:
        model = bytearray(random.randbytes(4 << 20))
        h.pwrite(model, 0)
        try:
            h.zero(length, offset, flags | nbd.CMD_FLAG_FAST_ZERO)
            model[offset:offset + length] = bytes(length)
            done.append(length % 4096 == 0)
        except nbd.Error as error:
            assert error.errno == "ENOTSUP", error
        assert h.pread(4 << 20, 0) == model, (flags, offset, length)
print("whole blocks:", done.count(True))
"#,
        );
        assert_eq!(said.trim(), "whole blocks: 6", "{arguments:?}: file system and memory are fast at those");
        server.stop();
    }
}

#[test]
fn what_was_flushed_or_written_with_fua_is_in_the_file() {
    for cache in CACHES {
        let place = Place::new();
        let image = place.sparse("disk.img", 4 * MIB as u64);
        let server = place.serve(&["disk.img", "--cache", cache]);
        shell(
            &server,
            r#"
assert h.can_fua() and h.can_flush()
h.pwrite(b"a" * 5000, 3)
h.flush()
h.pwrite(b"b" * 5000, 1 << 20, nbd.CMD_FLAG_FUA)
h.zero(1000, 1000, nbd.CMD_FLAG_FUA)
"#,
        );
        server.kill();
        let bytes = fs::read(image).unwrap();
        let expected = [&[0; 3][..], &[b'a'; 997], &[0; 1000], &[b'a'; 3003], &[0]].concat();
        assert!(bytes[..5004] == expected);
        assert!(bytes[MIB..MIB + 5000] == [b'b'; 5000]);
    }
}

/// `chunks(length, offset, flags)`: the data, and offset, length and kind of each chunk they came in.
const CHUNKS: &str = r#"
def chunks(length, offset, flags=0):
    pieces = []
    def chunk(data, at, status, error):
        pieces.append((at, len(data), status))
    data = h.pread_structured(length, offset, chunk, flags)
    at = offset
    for start, size, _ in sorted(pieces):
        assert start == at, "a gap or an overlap"
        at += size
    assert at == offset + length
    return data, [piece[2] for piece in pieces]
assert h.get_structured_replies_negotiated() and h.can_df()
"#;

#[test]
fn an_answer_without_fragments_is_one_chunk() {
    for arguments in [&["disk.img"][..], &["disk.img", "--cache", "direct"], &["--memory", "16M"]] {
        let place = Place::new();
        place.sparse("disk.img", 16 * MIB as u64);
        let server = place.serve(arguments);
        let script = r#"
for start in [1 << 20, (9 << 20) + 512]:
    h.pwrite(random.randbytes(1 << 20), start)
for length, offset in [(16 << 20, 0), (4 << 20, 12345), (1, 0), (4096, 9 << 20)]:
    whole, kinds = chunks(length, offset, nbd.CMD_FLAG_DF)
    assert kinds == [nbd.READ_DATA], kinds
    assert chunks(length, offset)[0] == whole == h.pread(length, offset)
"#;
        shell(&server, &format!("{CHUNKS}{script}"));
    }
}

/// Every other 64 KiB of 32 MiB: the reply with the most chunks that memory can make.
#[test]
fn holes_of_memory_are_named_and_read_as_zeroes() {
    let place = Place::new();
    let server = place.serve(&["--memory", "33M"]);
    let script = r#"
piece, largest = 64 << 10, 32 << 20
model = bytearray(33 << 20)
for start in range(0, largest, 2 * piece):
    data = random.randbytes(piece)
    h.pwrite(data, start)
    model[start:start + piece] = data
data, kinds = chunks(largest, 0)
assert data == model[:largest]
assert (kinds.count(nbd.READ_DATA), kinds.count(nbd.READ_HOLE)) == (256, 256), kinds
data, kinds = chunks(largest, 12345)
assert data == model[12345:12345 + largest] and kinds.count(nbd.READ_HOLE) == 256
assert chunks(100, piece)[1] == [nbd.READ_HOLE]
assert chunks(largest, 0, nbd.CMD_FLAG_DF) == (model[:largest], [nbd.READ_DATA])
for _ in range(4):
    cookies = [h.aio_pread(nbd.Buffer(1 << 20), number << 20) for number in range(33)]
    while h.aio_in_flight() > 0:
        h.poll(-1)
    assert all(h.aio_command_completed(cookie) for cookie in cookies)
"#;
    shell(&server, &format!("{CHUNKS}{script}"));
}

#[test]
fn a_server_of_simple_replies_does_everything_but_df() {
    let place = Place::new();
    place.sparse("disk.img", 4 * MIB as u64);
    let server = place.serve(&["disk.img", "--no-structured-replies"]);
    shell(
        &server,
        r#"
assert not h.get_structured_replies_negotiated() and not h.can_df()
data = random.randbytes(1 << 20)
h.pwrite(data, 4097)
h.flush()
assert h.pread(1 << 20, 4097) == data
h.zero(4096, 8192)
assert h.pread(4096, 8192) == bytes(4096)
fails("EINVAL", h.pread, 1, h.get_size())
fails("ENOSPC", h.pwrite, b"x", h.get_size())
fails("EINVAL", h.pread_structured, 512, 0, lambda *chunk: 0, nbd.CMD_FLAG_DF)
assert h.pread(4096, 0) == bytes(4096)
"#,
    );
}

#[test]
fn a_client_that_declines_structured_replies_is_served_too() {
    let place = Place::new();
    let server = place.serve(&["--memory", "4M"]);
    handshake(
        &server,
        r#"
h = nbd.NBD()
h.set_strict_mode(0)
h.set_request_structured_replies(False)
h.connect_uri(sys.argv[1])
assert not h.get_structured_replies_negotiated()
data = random.randbytes(1 << 20)
h.pwrite(data, 12345)
model = bytes(12345) + data + bytes((3 << 20) - 12345)
assert h.pread(4 << 20, 0) == model, "simple replies carry holes as zeroes"
fails("EINVAL", h.pread, 1, h.get_size())
assert h.pread(10, 0) == bytes(10)
h.shutdown()
"#,
    );
}

#[test]
fn options_may_be_aborted_and_asked_in_any_order() {
    let place = Place::new();
    place.sparse("a.img", 4096);
    place.sparse("b.img", 3 << 20);
    let server = place.serve(&["one=a.img", "two=b.img"]);
    handshake(
        &server,
        r#"
connection(opt_mode=True).opt_abort()

h = connection(opt_mode=True)
names = []
h.opt_list(lambda name, description: names.append(name))
assert names == ["one", "two"], names
h.set_full_info(True)
for name, size in [("two", 3 << 20), ("one", 4096), ("", 4096), ("two", 3 << 20)]:
    h.set_export_name(name)
    h.opt_info()
    assert h.get_size() == size, name
assert h.get_canonical_export_name() == "two"
h.opt_go()
assert h.get_size() == 3 << 20
h.pwrite(b"after INFO", 99)
assert h.pread(10, 99) == b"after INFO"
h.shutdown()
"#,
    );
    server.stop();
}

#[test]
fn a_client_sent_away_from_a_missing_export_may_ask_for_another() {
    let place = Place::new();
    place.sparse("a.img", 4096);
    let server = place.serve(&["one=a.img"]);
    handshake(
        &server,
        r#"
h = connection(opt_mode=True)
for name in ["missing", "One", "one ", "a.img", "../a.img", "x" * 4096, "%s\n"]:
    h.set_export_name(name)
    fails("ENOENT", h.opt_info)
    fails("ENOENT", h.opt_go)
h.set_export_name("one")
h.opt_go()
assert h.pread(4096, 0) == bytes(4096)
h.shutdown()
"#,
    );
    server.stop();
}

#[test]
fn what_one_connection_wrote_the_others_read() {
    let place = Place::new();
    place.sparse("disk.img", 4 * MIB as u64);
    let server = place.serve(&["disk.img"]);
    shell(
        &server,
        r#"
others = [connection() for _ in range(8)]
assert h.can_multi_conn()
for round in range(50):
    writer = others[round % 8]
    data = random.randbytes(20000)
    writer.pwrite(data, round * 777)
    others[(round + 3) % 8].flush()
    for reader in others:
        assert reader.pread(20000, round * 777) == data
"#,
    );
}

#[test]
fn hundreds_of_requests_in_flight_are_all_answered() {
    for arguments in [&["disk.img"][..], &["disk.img", "--cache", "direct"], &["--memory", "64M"]] {
        let place = Place::new();
        place.sparse("disk.img", 64 * MIB as u64);
        let server = place.serve(arguments);
        shell(
            &server,
            r#"
data = random.randbytes(1 << 20)
model = bytearray(64 << 20)
def all_done(cookies):
    while h.aio_in_flight() > 0:
        h.poll(-1)
    for cookie in cookies:
        assert h.aio_command_completed(cookie)
cookies = []
for number in range(1000):
    offset, length = number * 65000 + 1, 1 + number * 60
    cookies.append(h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data[:length])), offset))
    model[offset:offset + length] = data[:length]
all_done(cookies)
assert h.pread(32 << 20, 0) + h.pread(32 << 20, 32 << 20) == model
"#,
        );
    }
}

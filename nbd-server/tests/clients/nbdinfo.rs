//! nbdinfo: what the server says about itself, and being started by a client.

use std::process::Command;

use crate::server::Place;
use crate::tools::{run, tool};

/// What every writable export answers.
const WRITABLE: [&str; 11] = [
    r#""is_read_only": false"#,
    r#""can_cache": true"#,
    r#""can_df": true"#,
    r#""can_fast_zero": true"#,
    r#""can_flush": true"#,
    r#""can_fua": true"#,
    r#""can_multi_conn": true"#,
    r#""can_trim": true"#,
    r#""can_zero": true"#,
    r#""block_size_minimum": 1"#,
    r#""block_size_preferred": 4096"#,
];
const PAYLOAD_MAX: &str = r#""block_size_maximum": 33554432"#;

fn info(arguments: &[&str]) -> String {
    run(tool("nbdinfo").args(arguments)).stdout
}

/// Each of `wanted` stands alone on a line, as nbdinfo prints its JSON, `times` times.
fn assert_lines(json: &str, wanted: &[&str], times: usize) {
    for line in wanted {
        let found = json.lines().filter(|found| found.trim().trim_end_matches(',') == *line).count();
        assert_eq!(found, times, "{line} in {json}");
    }
}

#[test]
fn two_exports_show_their_sizes_flags_and_block_sizes() {
    let place = Place::new();
    place.sparse("a.img", 8 << 20);
    place.sparse("b.img", 3_000_001);
    let server = place.serve(&["one=a.img", "two=b.img"]);
    for (name, own) in [
        ("one", [r#""export-name": "one""#, r#""export-size": 8388608"#]),
        ("two", [r#""export-name": "two""#, r#""export-size": 3000001"#]),
    ] {
        let json = info(&["--json", &server.export_uri(name)]);
        assert_lines(&json, &WRITABLE, 1);
        let session = [PAYLOAD_MAX, r#""protocol": "newstyle-fixed""#, r#""structured": true"#];
        assert_lines(&json, &session, 1);
        assert!(own.iter().all(|line| json.contains(line)), "{json}");
    }
    server.stop();
}

#[test]
fn the_first_image_is_the_default_export() {
    let place = Place::new();
    place.sparse("a.img", 4096);
    place.sparse("b.img", 8192);
    let server = place.serve(&["one=a.img", "two=b.img"]);
    assert_eq!(info(&["--size", &server.uri()]).trim(), "4096");
    assert_eq!(info(&["--size", &server.export_uri("two")]).trim(), "8192");
}

#[test]
fn list_names_every_export_once() {
    let place = Place::new();
    place.sparse("a.img", 8 << 20);
    place.sparse("b.img", 1 << 20);
    let server = place.serve(&["one=a.img", "two=b.img", "--memory", "2M"]);
    let json = info(&["--list", "--json", &server.uri()]);
    let names = [r#""export-name": "one""#, r#""export-name": "two""#, r#""export-name": "memory""#];
    assert_lines(&json, &names, 1);
    assert_lines(&json, &WRITABLE, 3);
}

/// Both programs ask for each export's details on the connection that got the list.
#[test]
fn forty_exports_are_listed_with_their_details() {
    let place = Place::new();
    let images: Vec<String> = (0..40).map(|number| format!("e{number}={number}.img")).collect();
    for number in 0..40 {
        place.sparse(&format!("{number}.img"), 4096 * (number + 1));
    }
    let server = place.serve(&images.iter().map(String::as_str).collect::<Vec<_>>());
    let listed = run(tool("qemu-nbd").arg("-L").arg("-k").arg(server.socket())).stdout;
    assert!(listed.contains("exports available: 40"), "{listed}");
    assert_eq!(listed.matches("size:").count(), 40, "{listed}");
    let json = info(&["--list", "--json", &server.uri()]);
    assert_lines(&json, &WRITABLE, 40);
}

#[test]
fn an_empty_image_is_a_disk_of_zero_bytes() {
    let place = Place::new();
    place.sparse("disk.img", 0);
    let server = place.serve(&["disk.img"]);
    assert_eq!(info(&["--size", &server.uri()]).trim(), "0");
    let copy = place.path("copy");
    run(tool("nbdcopy").arg(server.uri()).arg(&copy));
    assert_eq!(std::fs::metadata(copy).unwrap().len(), 0);
}

#[test]
fn questions_are_answered_by_exit_code() {
    let place = Place::new();
    place.sparse("a.img", 1 << 20);
    let server = place.serve(&["a.img"]);
    for can in ["multi-conn", "fua", "flush", "zero", "fast-zero", "trim", "df", "cache", "write"] {
        info(&["--can", can, &server.uri()]);
    }
}

#[test]
fn a_read_only_export_says_so() {
    let place = Place::new();
    place.sparse("a.img", 1 << 20);
    let server = place.serve(&["a.img", "--read-only", "--rotational"]);
    info(&["--is", "read-only", &server.uri()]);
    let json = info(&["--json", &server.uri()]);
    let lines = [r#""is_read_only": true"#, r#""is_rotational": true"#, r#""can_multi_conn": true"#];
    assert_lines(&json, &lines, 1);
}

#[test]
fn a_missing_export_is_an_error() {
    let place = Place::new();
    place.sparse("a.img", 1 << 20);
    let server = place.serve(&["a.img"]);
    let words = crate::tools::run_failing(tool("nbdinfo").arg(server.export_uri("b.img")));
    assert!(words.contains("no such export") || words.contains("No such"), "{words}");
}

/// `nbdinfo --json -- [ nbd-server disk.img ]`.
fn activated(place: &Place, words: &[&str]) -> Command {
    let server = place.command(words);
    let mut command = tool("nbdinfo");
    command.current_dir(server.get_current_dir().unwrap()).env_remove("NBD_SERVER_LOG");
    command.args(["--json", "--", "["]).arg(server.get_program()).args(server.get_args()).arg("]");
    command
}

#[test]
fn a_client_starts_the_server_itself_and_again_at_once() {
    let place = Place::new();
    place.sparse("disk.img", 5 << 20);
    for _ in 0..3 {
        let json = run(&mut activated(&place, &["disk.img"])).stdout;
        assert_lines(&json, &WRITABLE, 1);
        assert!(json.contains(r#""export-size": 5242880"#), "{json}");
    }
}

#[test]
fn a_client_starts_a_server_of_memory() {
    let place = Place::new();
    let json = run(&mut activated(&place, &["--memory", "3M"])).stdout;
    assert!(json.contains(r#""export-size": 3145728"#), "{json}");
}

//! Block status, as other people's programs see it.

use crate::server::Place;
use crate::tools::{allocated, assert_same_content, python, run, tool};

const MIB: u64 = 1 << 20;

/// A disk of 16 MiB with data in its third and its last MiB.
fn sparse(place: &Place) {
    place.islands("disk.img", 16 * MIB, &[2 * MIB, 15 * MIB]);
}

#[test]
fn nbdinfo_maps_a_sparse_file() {
    let place = Place::new();
    sparse(&place);
    let server = place.serve(&["disk.img"]);
    let said = run(tool("nbdinfo").args(["--map", &server.uri()])).stdout;
    let rows: Vec<Vec<&str>> = said.lines().map(|line| line.split_whitespace().take(3).collect()).collect();
    let expected = [
        ["0", "2097152", "3"],
        ["2097152", "1048576", "0"],
        ["3145728", "12582912", "3"],
        ["15728640", "1048576", "0"],
    ];
    assert_eq!(rows, expected, "{said}");
    let totals = run(tool("nbdinfo").args(["--map", "--totals", &server.uri()])).stdout;
    assert!(totals.contains("14680064  87.5%   3"), "{totals}");
}

#[test]
fn nbdinfo_lists_the_contexts() {
    let place = Place::new();
    sparse(&place);
    let server = place.serve(&["disk.img", "--memory", "1M"]);
    for uri in [server.uri(), server.export_uri("memory")] {
        let json = run(tool("nbdinfo").args(["--json", &uri])).stdout;
        assert!(json.contains(r#""base:allocation""#), "{json}");
        run(tool("nbdinfo").args(["--can", "structured-reply", &uri]));
    }
}

#[test]
fn qemu_img_maps_a_sparse_file() {
    let place = Place::new();
    sparse(&place);
    let server = place.serve(&["disk.img"]);
    let map = ["map", "-f", "raw", "--output=json"];
    let said = run(tool("qemu-img").args(map).arg(server.uri())).stdout;
    for (start, length, data) in
        [(0, 2 * MIB, false), (2 * MIB, MIB, true), (3 * MIB, 12 * MIB, false), (15 * MIB, MIB, true)]
    {
        let found = said.lines().any(|line| {
            line.contains(&format!(r#""start": {start}, "length": {length}"#))
                && line.contains(&format!(r#""zero": {}, "data": {data}"#, !data))
        });
        assert!(found, "{start}+{length} in {said}");
    }
}

/// A copy reads only what there is, and is as sparse.
#[test]
fn a_copy_skips_the_holes() {
    let place = Place::new();
    sparse(&place);
    let server = place.serve(&["disk.img"]);
    for (program, copy) in [("nbdcopy", "one"), ("qemu-img", "two")] {
        let copy = place.path(copy);
        let mut command = tool(program);
        if program == "qemu-img" {
            command.args(["convert", "-f", "raw", "-O", "raw"]);
        }
        run(command.arg(server.uri()).arg(&copy));
        assert_same_content(&copy, &place.path("disk.img"));
        assert!(allocated(&copy) <= 3 * MIB, "{program}");
    }
}

/// For clients that have to do without.
#[test]
fn without_contexts_everything_is_data() {
    let place = Place::new();
    sparse(&place);
    for argument in ["--no-meta-contexts", "--no-meta", "--no-sr"] {
        let server = place.serve(&["disk.img", argument]);
        let script = format!(
            "import nbd\nh = nbd.NBD()\nh.add_meta_context('base:allocation')\nh.connect_uri('{}')\n\
             assert not h.can_meta_context('base:allocation')\nassert len(h.pread(512, 0)) == 512\n",
            server.uri()
        );
        run(&mut python(&script));
        let said = run(tool("qemu-img").args(["map", "-f", "raw", "--output=json"]).arg(server.uri())).stdout;
        assert!(
            said.contains(r#""start": 0, "length": 16777216"#) && said.contains(r#""data": true"#),
            "{said}"
        );
        server.stop();
    }
}

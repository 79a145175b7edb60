//! Inputs that have once been found, each under the name of what was wrong.

use nbd_fuzz::targets::Target;

macro_rules! input {
    ($name:literal) => {
        include_bytes!(concat!("../regressions/", $name))
    };
}

/// Of a question with a payload a server that stops looks at the header only: it may say ESHUTDOWN where the payload is wrong. The
/// oracle did not know.
#[test]
fn a_filter_that_is_wrong_when_the_server_stops() {
    Target::Session.run(input!("a_filter_that_is_wrong_when_the_server_stops")).unwrap();
}

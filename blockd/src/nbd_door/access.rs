//! Which exports an identity may see, and what it may do with them. Pure.
//!
//! The first rule that fits identity and export decides; an export that no rule fits does not exist for that identity.
//! Without any rules, clients that were given a certificate may write to everything: an operator has made it by hand
//! for that. Paired hosts may see nothing then: they were paired to replicate, which is no reason to let them write to
//! the disks of running guests.

use serde::Deserialize;

/// Rules in a configuration, at most.
pub const RULES_MAX: usize = 1024;
/// What an identity without a kind before it is.
const KIND_DEFAULT: &str = "client:";
const KINDS: [&str; 3] = [KIND_DEFAULT, "host:", "cert:"];

/// What may be done with an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessMode {
    /// It is read-only.
    Read,
    /// Whatever the export allows.
    Write,
}

/// `[[nbd_access]]` in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRule {
    /// `client:NAME`, `host:NAME` or `cert:NAME`; `*` stands for any text. Without a kind: a client.
    pub identity: String,
    /// Names of exports; `*` stands for any text.
    pub exports: Vec<String>,
    /// What may be done with them.
    pub mode: AccessMode,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Access {
    rules: Vec<AccessRule>,
}

impl AccessRule {
    /// Why it can fit nobody, or nothing.
    ///
    /// # Errors
    /// A text for people.
    pub fn check(&self) -> Result<(), String> {
        let known = KINDS.iter().any(|kind| self.identity.starts_with(kind));
        if self.identity.is_empty() || (self.identity.contains(':') && !known) {
            return Err(format!(
                "identity {:?} is neither client:NAME, host:NAME nor cert:NAME",
                self.identity
            ));
        }
        if self.exports.is_empty() || self.exports.iter().any(String::is_empty) {
            return Err("exports must name at least one export".to_owned());
        }
        Ok(())
    }

    fn fits(&self, identity: &str, export: &str) -> bool {
        let fits_identity = match self.identity.contains(':') {
            true => matches(&self.identity, identity),
            false => identity.strip_prefix(KIND_DEFAULT).is_some_and(|name| matches(&self.identity, name)),
        };
        fits_identity && self.exports.iter().any(|pattern| matches(pattern, export))
    }
}

impl Access {
    /// These rules, in their order.
    pub fn new(rules: Vec<AccessRule>) -> Self {
        Self { rules }
    }

    /// What an identity may do with an export; `None`: it does not exist for it.
    pub fn mode(&self, identity: &str, export: &str) -> Option<AccessMode> {
        if self.rules.is_empty() {
            return (!identity.starts_with("host:")).then_some(AccessMode::Write);
        }
        self.rules.iter().find(|rule| rule.fits(identity, export)).map(|rule| rule.mode)
    }
}

/// Whether a pattern fits a whole text; `*` stands for any text, also none. Takes time in proportion to the product of
/// the lengths at most.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(identity: &str, exports: &[&str], mode: AccessMode) -> AccessRule {
        let exports = exports.iter().map(|&export| export.to_owned()).collect();
        AccessRule { identity: identity.to_owned(), exports, mode }
    }

    #[test]
    fn patterns() {
        for (pattern, text) in [
            ("web1", "web1"),
            ("*", ""),
            ("*", "web1"),
            ("web*", "web"),
            ("web*", "web1@a"),
            ("*1", "web1"),
            ("w*b*", "web1"),
            ("w*b*1", "wbbb11"),
            ("a*a", "aa"),
            ("**", "x"),
            ("", ""),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("web1", "web"),
            ("web1", "web10"),
            ("web*", "we"),
            ("*1", "web"),
            ("a*a", "a"),
            ("a*b*c", "acb"),
            ("", "x"),
            ("Web1", "web1"),
        ] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let access = Access::new(vec![
            rule("web*", &["secret*"], AccessMode::Read),
            rule("client:web1", &["web1", "data-*"], AccessMode::Write),
            rule("host:B", &["*"], AccessMode::Read),
            rule("client:admin", &["*"], AccessMode::Write),
        ]);
        for (identity, export, mode) in [
            ("client:web1", "web1", Some(AccessMode::Write)),
            ("client:web1", "data-3", Some(AccessMode::Write)),
            ("client:web1", "secret1", Some(AccessMode::Read)),
            ("client:web1", "web2", None),
            ("client:web10", "web1", None),
            ("client:web2", "secret1", Some(AccessMode::Read)),
            ("host:B", "web1", Some(AccessMode::Read)),
            ("host:web1", "web1", None),
            ("host:C", "web1", None),
            ("cert:web1", "web1", None),
            ("client:B", "web1", None),
            ("client:admin", "web1@a", Some(AccessMode::Write)),
        ] {
            assert_eq!(access.mode(identity, export), mode, "{identity} {export}");
        }
    }

    #[test]
    fn without_rules_hosts_see_nothing() {
        let access = Access::new(Vec::new());
        assert_eq!(access.mode("client:a", "x"), Some(AccessMode::Write));
        assert_eq!(access.mode("cert:a", "x"), Some(AccessMode::Write));
        assert_eq!(access.mode("host:a", "x"), None);
    }

    #[test]
    fn rules_that_fit_nobody_are_refused() {
        let good = ["a", "*", "client:a", "host:*", "cert:Alice B"];
        assert!(good.iter().all(|identity| rule(identity, &["x"], AccessMode::Read).check().is_ok()));
        for bad in ["", "user:a", ":a"] {
            assert!(rule(bad, &["x"], AccessMode::Read).check().is_err(), "{bad}");
        }
        assert!(rule("a", &[], AccessMode::Read).check().is_err());
        assert!(rule("a", &[""], AccessMode::Read).check().is_err());
    }
}

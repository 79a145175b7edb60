//! Who may talk to the daemon: root, the daemon's own user, and the members of one configured group.

use std::path::Path;

use rustix::process::geteuid;
use tokio::net::unix::UCred;

/// The system's list of groups.
const GROUP_FILE: &str = "/etc/group";
/// The system's list of users.
const USER_FILE: &str = "/etc/passwd";

/// Why a group cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// It is not in the list.
    #[error("there is no group {0:?} in {GROUP_FILE}")]
    Unknown(String),
    /// The list cannot be read.
    #[error("{GROUP_FILE} cannot be read: {0}")]
    Io(#[from] std::io::Error),
}

/// The rule, as it was configured.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    own_uid: u32,
    group: Option<Group>,
}

#[derive(Clone, Debug)]
struct Group {
    name: String,
    gid: u32,
}

impl Access {
    /// The rule with that group, or without one.
    ///
    /// # Errors
    /// The group is not known.
    pub(crate) fn new(group: Option<&str>) -> Result<Self, GroupError> {
        let group = group.map(find_group).transpose()?;
        Ok(Self { own_uid: geteuid().as_raw(), group })
    }

    /// The group that the socket's file gets.
    pub(crate) fn gid(&self) -> Option<u32> {
        self.group.as_ref().map(|group| group.gid)
    }

    /// Whether a peer may. The socket's mode has said so already where it is ours; an inherited socket's mode
    /// was chosen by somebody else.
    pub(crate) fn allows(&self, peer: UCred) -> bool {
        peer.uid() == 0
            || peer.uid() == self.own_uid
            || self.group.as_ref().is_some_and(|group| is_member(group, peer))
    }
}

/// Its primary group, or a name in the group's line. Read anew each time: a user who was added need not wait for a
/// restart, one who was removed is out at once.
fn is_member(group: &Group, peer: UCred) -> bool {
    let read = |file: &str| std::fs::read_to_string(Path::new(file)).unwrap_or_default();
    peer.gid() == group.gid
        || user_name(&read(USER_FILE), peer.uid())
            .is_some_and(|user| lists_member(&read(GROUP_FILE), &group.name, &user))
}

fn find_group(name: &str) -> Result<Group, GroupError> {
    let gid = group_id(&std::fs::read_to_string(GROUP_FILE)?, name);
    gid.map(|gid| Group { name: name.to_owned(), gid }).ok_or_else(|| GroupError::Unknown(name.to_owned()))
}

/// `name:password:gid:members`.
fn group_id(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

fn lists_member(groups: &str, name: &str, user: &str) -> bool {
    let line = groups.lines().find(|line| line.split(':').next() == Some(name));
    let members = line.and_then(|line| line.split(':').nth(3)).unwrap_or_default();
    members.split(',').any(|member| !member.is_empty() && member == user)
}

/// `name:password:uid:…`.
fn user_name(users: &str, uid: u32) -> Option<String> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUPS: &str = "root:x:0:\nblock:x:990:ann,bob\nkvm:x:108:\n";
    const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nann:x:1001:1001::/home/ann:/bin/sh\nbroken\n";

    #[test]
    fn groups_and_users_are_found_by_whole_names() {
        assert_eq!(group_id(GROUPS, "block"), Some(990));
        assert_eq!(group_id(GROUPS, "bloc"), None);
        assert!(lists_member(GROUPS, "block", "bob") && !lists_member(GROUPS, "block", "bo"));
        assert!(!lists_member(GROUPS, "kvm", ""), "an empty list has no member with an empty name to match");
    }

    #[test]
    fn users_are_found_by_number() {
        assert_eq!(user_name(USERS, 1001).as_deref(), Some("ann"));
        assert_eq!(user_name(USERS, 4), None);
    }
}

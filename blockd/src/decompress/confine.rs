//! What the process that decompresses gives up before it reads a peer's bytes.
//!
//! In this order, each a wall of its own: another user, limits, Landlock, seccomp. Only the last one must hold: it alone
//! leaves nothing but memory and descriptor 0. Where one of the others cannot be had, for an old kernel or a unit file
//! that forbids it, the process goes on and says so.

use std::env::consts::ARCH;

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope};
use rustix::process::{
    DumpableBehavior, Gid, Resource, Rlimit, Uid, geteuid, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

/// Who it becomes where the daemon is root: the user and the group that own nothing.
pub const NOBODY: u32 = 65534;
/// Address space, bytes: the program itself, and two batches.
pub const ADDRESS_SPACE_MAX: u64 = 256 << 20;
/// The latest Landlock that we know; of an older one as much as there is.
const LANDLOCK: ABI = ABI::V6;

/// Gives up what this process, which has one thread, does not need. What it could not give up, in words.
///
/// # Errors
/// Without seccomp it may not go on.
pub fn confine() -> Result<Vec<String>, String> {
    let mut missing = Vec::new();
    let mut note = |what: &str, result: Result<(), String>| {
        missing.extend(result.err().map(|why| format!("{what}: {why}")));
    };
    note("another user", become_nobody().map_err(|error| error.to_string()));
    note("limits", limit().map_err(|error| error.to_string()));
    note("Landlock", lock_files());
    // Landlock needed one.
    note("descriptors", set_limit(Resource::Nofile, 0).map_err(|error| error.to_string()));
    filter_calls()?;
    Ok(missing)
}

fn become_nobody() -> rustix::io::Result<()> {
    if geteuid().is_root() {
        let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        set_thread_groups(&[])?;
        set_thread_res_gid(group, group, group)?;
        set_thread_res_uid(user, user, user)?;
    }
    // A batch of a guest's data is here: others of that user shall not look at it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

fn set_limit(resource: Resource, most: u64) -> rustix::io::Result<()> {
    setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
}

fn limit() -> rustix::io::Result<()> {
    set_limit(Resource::As, ADDRESS_SPACE_MAX)?;
    [Resource::Nproc, Resource::Fsize, Resource::Core]
        .into_iter()
        .try_for_each(|resource| set_limit(resource, 0))
}

/// No file, no TCP port, no abstract socket, no signal to others: all is handled and nothing allowed.
pub(super) fn lock_files() -> Result<(), String> {
    match restrict().map_err(|error| error.to_string())? {
        RulesetStatus::FullyEnforced => Ok(()),
        RulesetStatus::PartiallyEnforced => Err("this kernel has a part of it".to_owned()),
        RulesetStatus::NotEnforced => Err("this kernel has none".to_owned()),
    }
}

fn restrict() -> Result<RulesetStatus, RulesetError> {
    let handled = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?;
    Ok(handled.create()?.restrict_self()?.ruleset)
}

/// Any other call ends the process with SIGSYS.
fn filter_calls() -> Result<(), String> {
    let program = filter().map_err(|error| format!("seccomp: {error}"))?;
    // It also sees to it that no program that it could start would get more rights.
    apply_filter(&program).map_err(|error| format!("seccomp: {error}"))
}

fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = TargetArch::try_from(ARCH)?;
    let rules = allowed()?.into_iter().collect();
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)?.try_into()
}

/// An argument whose bits under a mask are these.
fn bits(argument: u8, mask: i32, value: i32) -> Result<SeccompCondition, seccompiler::BackendError> {
    let [mask, value] = [mask, value].map(|bits| u64::from(bits.cast_unsigned()));
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value)
}

type Rules = Vec<(i64, Vec<SeccompRule>)>;

/// Found with strace; of aarch64 they are the same.
fn allowed() -> Result<Rules, seccompiler::BackendError> {
    // Whatever else was left open by who started the daemon.
    let own_socket = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, 0)?;
    let own_socket = || SeccompRule::new(vec![own_socket.clone()]);
    let no_code = || bits(2, libc::PROT_EXEC, 0);
    let no_file = bits(3, libc::MAP_ANONYMOUS, libc::MAP_ANONYMOUS)?;
    let mut rules = vec![
        (libc::SYS_read, vec![own_socket()?]),
        (libc::SYS_write, vec![own_socket()?]),
        (libc::SYS_mmap, vec![SeccompRule::new(vec![no_code()?, no_file])?]),
        (libc::SYS_mprotect, vec![SeccompRule::new(vec![no_code()?])?]),
    ];
    // Memory; the end of a process and of its thread; what the kernel goes on with after a signal that stopped us.
    let plain = [
        libc::SYS_brk,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_futex,
        libc::SYS_sigaltstack,
        libc::SYS_rt_sigreturn,
        libc::SYS_restart_syscall,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];
    rules.extend(plain.map(|call| (call, Vec::new())));
    Ok(rules)
}

//! What a move needs of one host: a VM that is held, its monitor lent, and a QEMU that takes a guest in. Both sides here
//! are of the same agent, in this process.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::timeout;
use vmctl::agent::view::{DefineVm, VmState};
use vmctl::agent::{News, Registry, VmHandle};
use vmctl::config::{Settings, load};
use vmctl::error::Kind;
use vmctl::vm::accel::AccelChoice;
use vmctl::vm::command_line::Beginning;
use vmctl::vm::definition::Definition;

const PATIENCE: Duration = Duration::from_secs(60);

fn registry(dir: &TempDir) -> Registry {
    let path = |name: &str| Some(dir.path().join(name));
    let settings = Settings {
        data: path("data"),
        run: path("run"),
        blockd_socket: path("blockd"),
        nbd_socket: path("nbd"),
        accel: Some(AccelChoice::Tcg),
        ..Settings::default()
    };
    std::fs::create_dir_all(dir.path().join("data")).unwrap();
    Registry::open(load(settings, None).unwrap()).unwrap()
}

async fn define(registry: &Registry, name: &str) -> VmHandle {
    let text = format!(
        "name = \"{name}\"\nmemory = \"64MiB\"\n[[nic]]\nmac = \"52:54:00:00:00:01\"\nbackend = \"none\"\n"
    );
    let definition = Definition::parse(&text, Path::new("x")).unwrap();
    registry.define(DefineVm { definition, replace: false }).await.unwrap();
    registry.vm(&name.parse().unwrap()).unwrap()
}

async fn wait(vm: &VmHandle, state: VmState) {
    let mut view = vm.watch();
    timeout(PATIENCE, view.wait_for(|view| view.state == state)).await.expect("in time").unwrap();
}

/// Ends QEMUs also when an assertion fails.
struct Ended(Vec<VmHandle>);

impl Drop for Ended {
    fn drop(&mut self) {
        for process in self.0.iter().filter_map(|vm| vm.view().process) {
            crate::rig::kill(i64::from(process.pid));
        }
    }
}

#[tokio::test]
async fn a_guest_moves_between_two_qemus_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir);
    let (source, destination) = (define(&registry, "a").await, define(&registry, "b").await);
    let _ended = Ended(vec![source.clone(), destination.clone()]);
    source.start(Beginning::Boot, true, None).await.unwrap();
    destination.hold("move 1").await.unwrap();
    let refused = destination.start(Beginning::Incoming, false, None).await.unwrap_err();
    assert_eq!(refused.kind, Kind::Busy);
    destination.start(Beginning::Incoming, false, Some("move 1".into())).await.unwrap();
    assert_eq!(destination.view().state, VmState::Inmigrate);
    source.hold("move 1").await.unwrap();

    let here = source.lend().await.unwrap();
    let mut there = destination.lend().await.unwrap();
    let capabilities = [("events", true), ("return-path", true), ("pause-before-switchover", true)];
    here.client.migrate_set_capabilities(&capabilities).await.unwrap();
    there.client.migrate_set_capabilities(&capabilities).await.unwrap();
    let parameters = [("announce-rounds".to_owned(), 0.into())].into();
    there.client.migrate_set_parameters(parameters).await.unwrap();
    let uri = format!("unix:{}", dir.path().join("mig").display());
    there.client.migrate_incoming(&uri).await.unwrap();
    here.client.migrate(&uri).await.unwrap();

    let mut news = here.news;
    follow(&mut news, "pre-switchover").await;
    here.client.migrate_continue().await.unwrap();
    follow(&mut news, "completed").await;
    follow(&mut there.news, "completed").await;
    wait(&source, VmState::Postmigrate).await;
    there.client.cont().await.unwrap();
    there.client.announce_self(3, 10, 10, 50).await.unwrap();
    wait(&destination, VmState::Running).await;

    assert_eq!(source.stop(Duration::ZERO, true, None).await.unwrap_err().kind, Kind::Busy);
    source.stop(Duration::ZERO, true, Some("move 1".into())).await.unwrap();
    assert_eq!(source.view().state, VmState::Stopped);
    assert!(matches!(drain(&mut news).await, Some(News::Ended(_))));
    destination.release("move 1").await.unwrap();
    destination.stop(Duration::ZERO, true, None).await.unwrap();
}

async fn follow(news: &mut tokio::sync::mpsc::Receiver<News>, status: &str) {
    let following = async {
        loop {
            match news.recv().await.expect("news until the end") {
                News::Event(event) if event.migration_status() == Some(status) => return,
                News::Event(event) => assert_ne!(event.migration_status(), Some("failed"), "before {status}"),
                other => panic!("{other:?} before {status}"),
            }
        }
    };
    timeout(PATIENCE, following).await.unwrap_or_else(|_| panic!("{status} in time"));
}

/// The last of the news.
async fn drain(news: &mut tokio::sync::mpsc::Receiver<News>) -> Option<News> {
    let mut last = None;
    while let Ok(Some(more)) = timeout(Duration::from_secs(1), news.recv()).await {
        let ended = matches!(more, News::Ended(_));
        last = Some(more);
        if ended {
            break;
        }
    }
    last
}

#[tokio::test]
async fn who_holds_a_vm_holds_it_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let name = "a".parse().unwrap();
    {
        let registry = registry(&dir);
        let vm = define(&registry, "a").await;
        vm.hold("move 1").await.unwrap();
        vm.hold("move 1").await.unwrap();
        assert_eq!(vm.hold("move 2").await.unwrap_err().kind, Kind::Busy);
        assert_eq!(vm.release("move 2").await.unwrap_err().kind, Kind::Busy);
    }
    let registry = registry(&dir);
    let vm = registry.vm(&name).unwrap();
    assert_eq!(vm.view().held_by.as_deref(), Some("move 1"));
    assert_eq!(vm.start(Beginning::Boot, true, None).await.unwrap_err().kind, Kind::Busy);
    assert_eq!(vm.delete().await.unwrap_err().kind, Kind::Busy);
    vm.release("move 1").await.unwrap();
    registry.delete(&name).await.unwrap();
    assert!(registry.view(&name).is_err());
}

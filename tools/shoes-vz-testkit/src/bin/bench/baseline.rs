//! The same guests started by a loop that polls like the Go implementation: a command is sent with the next sync, every
//! 5 s; the VM is polled every second, the address every 500 ms, SSH every 2 s; the state arrives with the next sync,
//! and the caller polls every 500 ms (internal/server/server.go, internal/agent/vm/vm.go, internal/agent/ssh/ssh.go).
//! Everything else is shoes-vz, at no cost for the baseline.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use shoes_vz_channel::{api::GuestApi, socket};
use shoes_vz_model::guest::port;
use shoes_vz_testkit::{bins::Bins, report::millis};
use shoes_vz_vm::{
    client::{Stop, Vm},
    clone::{make_bundle, remove_bundle},
    spec::{Accelerator, VmSpec},
    template::TemplateDir,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    time::{sleep, timeout},
};

const SYNC: Duration = Duration::from_secs(5);
const VM: Duration = Duration::from_secs(1);
const ADDRESS: Duration = Duration::from_millis(500);
const SSH: Duration = Duration::from_secs(2);
const CALLER: Duration = Duration::from_millis(500);

pub(crate) async fn measure(template: &Path, rounds: usize) -> anyhow::Result<Vec<f64>> {
    let template = TemplateDir::open(template)?;
    let agent = Bins::find().path("shoes-vz-agent");
    let dir = tempfile::Builder::new().prefix("svzb").tempdir()?;
    // Calls arrive at any moment of the sync interval; spread evenly, so that a few rounds are fair.
    let mut times = Vec::new();
    for round in 0..rounds {
        let bundle = dir.path().join(format!("{round}.bundle"));
        let into_the_interval = SYNC * round as u32 / rounds as u32;
        let took = one(&template, &agent, &bundle, into_the_interval).await?;
        times.push(millis(took));
        eprint!("\rbaseline {:>3}/{rounds}: {:.0} ms   ", round + 1, millis(took));
    }
    eprintln!();
    Ok(times)
}

async fn one(
    template: &TemplateDir,
    agent: &Path,
    bundle: &Path,
    into_the_interval: Duration,
) -> anyhow::Result<Duration> {
    let began = Instant::now();
    // The sync interval began before the call.
    let to_next_sync = || {
        let into = (into_the_interval + began.elapsed()).as_nanos() % SYNC.as_nanos();
        SYNC - Duration::from_nanos(into as u64)
    };
    sleep(to_next_sync()).await;
    let spec = VmSpec { accelerator: Accelerator::Tcg, ..VmSpec::of_template(template) };
    make_bundle(template, bundle, &spec)?;
    let vm = Vm::spawn(agent, bundle).await?;
    vm.start().await?;
    while vm.status().borrow().started_ms == 0 {
        sleep(VM).await;
    }
    let api = GuestApi::new(vm.guest_socket());
    while !matches!(timeout(ADDRESS, api.status()).await, Ok(Ok(_))) {
        sleep(ADDRESS).await;
    }
    loop {
        sleep(SSH).await;
        let banner = async {
            let stream = socket::dial(&vm.guest_socket(), port::SSH).await.ok()?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).await.ok().filter(|n| *n > 0)
        };
        // ConnectTimeout=1.
        if timeout(Duration::from_secs(1), banner).await.ok().flatten().is_some() {
            break;
        }
    }
    sleep(to_next_sync()).await;
    // The poll of the caller: half of its interval on average.
    sleep(CALLER / 2).await;
    let took = began.elapsed();
    vm.stop(Stop::Force).await?;
    remove_bundle(bundle).context("removing the bundle of the baseline")?;
    Ok(took)
}

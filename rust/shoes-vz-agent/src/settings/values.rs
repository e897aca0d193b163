//! Parsers of single settings.

use shoes_vz_process::settings::{Values, Zero};
use shoes_vz_vm::spec::{Display, HypervisorKind, Network};

use super::is_host_port;
use crate::{
    pool::{HotPlan, Idle},
    saved_states::StatesMode,
};

/// Like every function here, `None` after a mistake.
pub(super) fn hypervisor(v: &mut Values) -> Option<HypervisorKind> {
    v.parse("hypervisor", |text| match text {
        "auto" => Ok(HypervisorKind::of_this_host()),
        "qemu" => Ok(HypervisorKind::Qemu),
        "vz" => Ok(HypervisorKind::Vz),
        other => Err(format!("{other:?} is not one of auto, qemu and vz")),
    })
}

pub(super) fn max_runners(v: &mut Values, is_macos: bool) -> Option<u32> {
    v.parse("max-runners", |text| match text.parse::<u32>() {
        Ok(0) | Err(_) => Err(format!("{text:?} is not a valid number of VMs; it must be 1 or more")),
        Ok(n) if is_macos && n > 2 => {
            Err(format!("{n} is too many: macOS runs at most 2 macOS guests at a time"))
        }
        Ok(n) => Ok(n),
    })
}

/// Returns a URI.
pub(super) fn server(v: &mut Values) -> Option<String> {
    v.parse("server", |text| {
        let host_port = text.strip_prefix("http://").unwrap_or(text);
        match is_host_port(host_port) {
            true => Ok(format!("http://{host_port}")),
            false => Err(format!("{text:?} is not HOST:PORT")),
        }
    })
}

pub(super) fn hostname(v: &mut Values) -> Option<String> {
    if v.is_given("hostname") {
        return v.text("hostname");
    }
    let name = sysinfo::System::host_name();
    name.map_err(|e| v.mistake("hostname", format_args!("cannot determine this host's name ({e}); set it")))
        .ok()
}

pub(super) fn display(v: &mut Values) -> Option<Display> {
    v.switch("enable-graphics").map(|on| if on { Display::Window } else { Display::Headless })
}

/// QEMU guests have no network, so there is nothing to choose.
pub(super) fn network(v: &mut Values, hypervisor: Option<HypervisorKind>) -> Option<Network> {
    if !v.is_given("network") {
        return Some(Network::default());
    }
    v.parse("network", |text| match hypervisor {
        Some(HypervisorKind::Qemu) => Err(format!("{text:?} is for vz only; QEMU guests have no network")),
        Some(HypervisorKind::Vz) | None => text.parse::<Network>().map_err(|e| e.to_string()),
    })
}

/// The clock of a guest that is reached by TCP cannot be set after a pause.
pub(super) fn hot(v: &mut Values, is_tcp: bool) -> Option<HotPlan> {
    let mut plan = HotPlan::none();
    let wanted = v.parse("hot", |text| plan.parse_wanted(text));
    let idle = v.parse("hot-idle", str::parse);
    if is_tcp && idle == Some(Idle::Paused) {
        v.mistake(
            "hot-idle",
            "paused needs a template whose guests are reached by the guest channel (\"guest_agent\": \"channel\" in \
             Template.json)",
        );
    }
    let max_age = v.duration("hot-max-age", Zero::Refused);
    wanted?;
    plan.idle = idle?;
    plan.max_age = max_age?;
    Some(plan)
}

/// A guest that is reached by TCP cannot be personalized, so it is never restored.
pub(super) fn saved_states(v: &mut Values, is_tcp: bool) -> Option<StatesMode> {
    let mode = v.parse("saved-states", str::parse)?;
    Some(if is_tcp { StatesMode::Off } else { mode })
}

#[cfg(test)]
mod tests {
    use shoes_vz_process::settings::{Flags, Mistakes};

    use super::*;
    use crate::cli::Run;

    fn values(given: &[(&'static str, &str)]) -> Values {
        let flags = Flags::<Run>::of(given.iter().map(|(n, v)| (*n, v.as_ref())));
        Values::gather(&flags, [], Mistakes::default())
    }

    fn mistake(values: Values) -> String {
        values.finish::<()>(None).unwrap_err().to_string()
    }

    #[test]
    fn at_most_two_macos_guests_are_allowed_and_any_number_of_linux_guests() {
        let mut three = values(&[("max-runners", "3")]);
        assert_eq!(max_runners(&mut three, false), Some(3));
        assert_eq!(max_runners(&mut three, true), None);
        assert!(mistake(three).contains("at most 2"));
        assert_eq!(max_runners(&mut values(&[("max-runners", "-1")]), false), None);
    }

    #[test]
    fn a_network_is_chosen_for_vz_only() {
        assert_eq!(network(&mut values(&[]), Some(HypervisorKind::Qemu)), Some(Network::Nat));
        let mut vmnet = values(&[("network", "vmnet")]);
        assert_eq!(network(&mut vmnet, Some(HypervisorKind::Vz)), Some(Network::Vmnet));
        assert_eq!(network(&mut vmnet, Some(HypervisorKind::Qemu)), None);
        assert!(mistake(vmnet).contains("no network"));
        let mut bridged = values(&[("network", "bridged")]);
        assert_eq!(network(&mut bridged, Some(HypervisorKind::Vz)), None);
        assert!(mistake(bridged).contains("bridged"));
    }
}

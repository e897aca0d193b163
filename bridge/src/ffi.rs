//! The functions and values that cross the seam, for swift-bridge. Values only; each Swift function blocks, and returns
//! within its deadline. `bridge/swift/VZBridge/` is the other half.

use super::events::vz_event;

#[swift_bridge::bridge]
pub(crate) mod ffi {
    #[swift_bridge(swift_repr = "struct")]
    struct Outcome {
        /// `Code`; 0 = success.
        code: i32,
        /// The result, where it is a number (a descriptor).
        value: i64,
        /// The failure's reason, or the result where it is a text.
        text: String,
    }

    extern "Rust" {
        fn vz_event(machine: u64, kind: i32, value: i64, extra: i64, text: String);
    }

    extern "Swift" {
        fn vz_open(machine: u64, spec_json: &str) -> Outcome;
        fn vz_start(machine: u64, deadline_ms: u64) -> Outcome;
        fn vz_pause(machine: u64, deadline_ms: u64) -> Outcome;
        fn vz_resume(machine: u64, deadline_ms: u64) -> Outcome;
        fn vz_save(machine: u64, path: &str, deadline_ms: u64) -> Outcome;
        fn vz_restore(machine: u64, path: &str, deadline_ms: u64) -> Outcome;
        fn vz_request_stop(machine: u64, deadline_ms: u64) -> Outcome;
        fn vz_stop(machine: u64, deadline_ms: u64) -> Outcome;
        fn vz_connect(machine: u64, port: u32, deadline_ms: u64) -> Outcome;
        fn vz_save_support(machine: u64) -> Outcome;
        fn vz_close(machine: u64, deadline_ms: u64) -> Outcome;

        fn vz_clone(template: &str, bundle: &str, os: &str, disk_bytes: u64) -> Outcome;
        fn vz_host() -> Outcome;
        fn vz_restore_image(path: &str, deadline_ms: u64) -> Outcome;
        fn vz_install(job: u64, request_json: &str) -> Outcome;
        fn vz_cancel_install(job: u64) -> Outcome;

        fn vz_show_window(machine: u64, title: &str, deadline_ms: u64) -> Outcome;
        fn vz_run_main_loop();

        fn vz_machines() -> i64;
        fn vz_code_name(code: i32) -> String;
    }
}

import CVZBridge
import Foundation
import VZCore

// The functions that Rust calls. Each blocks its caller, a Rust thread for blocking calls, until it is done or its
// deadline has passed; none runs on a machine's queue or on Swift's threads.

func vz_open(machine id: UInt64, spec_json: RustStr) -> Outcome {
    let json = spec_json.toString()
    return outcome {
        try Machines.all.open(id, spec: MachineSpec.parse(json))
        return .done
    }
}

func vz_start(machine id: UInt64, deadline_ms: UInt64) -> Outcome {
    within(deadline_ms, "starting the VM", id) { machine in try await machine.start() }
}

func vz_pause(machine id: UInt64, deadline_ms: UInt64) -> Outcome {
    within(deadline_ms, "pausing the VM", id) { machine in try await machine.pause() }
}

func vz_resume(machine id: UInt64, deadline_ms: UInt64) -> Outcome {
    within(deadline_ms, "resuming the VM", id) { machine in try await machine.resume() }
}

func vz_save(machine id: UInt64, path: RustStr, deadline_ms: UInt64) -> Outcome {
    let path = path.toString()
    return within(deadline_ms, "saving the VM's state", id) { machine in try await machine.save(to: path) }
}

func vz_restore(machine id: UInt64, path: RustStr, deadline_ms: UInt64) -> Outcome {
    let path = path.toString()
    return within(deadline_ms, "restoring the VM's state", id) { machine in
        try await machine.restore(from: path)
    }
}

func vz_request_stop(machine id: UInt64, deadline_ms: UInt64) -> Outcome {
    within(deadline_ms, "pressing the power button", id) { machine in try await machine.requestStop() }
}

func vz_stop(machine id: UInt64, deadline_ms: UInt64) -> Outcome {
    within(deadline_ms, "stopping the VM", id) { machine in try await machine.stop() }
}

func vz_connect(machine id: UInt64, port: UInt32, deadline_ms: UInt64) -> Outcome {
    outcome {
        let machine = try Machines.all.find(id)
        let descriptor = try Deadline.run(
            deadline_ms, "connecting to the guest's port \(port)",
            late: { Descriptors.close($0) },
            { try await machine.connect(toPort: port) })
        return CallResult(value: Int64(descriptor), text: "")
    }
}

func vz_save_support(machine id: UInt64) -> Outcome {
    outcome {
        if let failure = try Machines.all.find(id).saveSupport { throw failure }
        return .done
    }
}

/// Deadline 0 closes it in the background. Succeeds if the machine is closed already.
func vz_close(machine id: UInt64, deadline_ms: UInt64) -> Outcome {
    outcome {
        guard let machine = Machines.all.take(id) else { return .done }
        if deadline_ms == 0 {
            Task.detached { await machine.close() }
        } else {
            try Deadline.run(deadline_ms, "closing the VM") { await machine.close() }
        }
        return .done
    }
}

func vz_clone(template: RustStr, bundle: RustStr, os: RustStr, disk_bytes: UInt64) -> Outcome {
    let (template, bundle, os) = (template.toString(), bundle.toString(), os.toString())
    return outcome {
        guard let os = MachineSpec.OS(rawValue: os) else {
            throw VZFailure(code: .badSpec, reason: "\"\(os)\" is neither macos nor linux")
        }
        try Bundles.clone(template: template, bundle: bundle, os: os, diskBytes: disk_bytes)
        return .done
    }
}

func vz_host() -> Outcome {
    outcome { CallResult(value: 0, text: try Host.json(HostLimits.current)) }
}

func vz_show_window(machine id: UInt64, title: RustStr, deadline_ms: UInt64) -> Outcome {
    let title = title.toString()
    return within(deadline_ms, "opening the VM's window", id) { machine in
        try await VMWindow.show(machine, title: title)
    }
}

/// On the main thread. Does not return.
func vz_run_main_loop() {
    MainActor.assumeIsolated { VMWindow.runMainLoop() }
}

func vz_machines() -> Int64 {
    Int64(VZCoreLiveness.machines)
}

/// The name of a code, or from 1000 on of a state; "" if there is none.
func vz_code_name(code: Int32) -> String {
    if code >= 1000 {
        return MachineState(rawValue: code - 1000).map { "\($0)" } ?? ""
    }
    return FailureCode(rawValue: code).map { "\($0)" } ?? ""
}

/// Calls a machine, with a deadline.
private func within(
    _ deadline: UInt64, _ what: String, _ id: UInt64,
    _ body: @escaping @Sendable (Machine) async throws -> Void
) -> Outcome {
    outcome {
        let machine = try Machines.all.find(id)
        try Deadline.run(deadline, what) { try await body(machine) }
        return .done
    }
}

import CVZBridge
import Foundation
import Synchronization
import VZCore

/// The request of `shoes_vz_bridge::install`.
private struct InstallRequest: Decodable, Sendable {
    let ipsw: String
    let template: String
    let disk_bytes: UInt64
    let cpus: Int
    let memory_bytes: UInt64
}

/// The running installations, so that they can be cancelled.
private final class Installations: Sendable {
    static let all = Installations()
    private let running = Mutex<[UInt64: Task<Void, any Error>]>([:])

    func begin(_ job: UInt64, _ task: Task<Void, any Error>) {
        running.withLock { $0[job] = task }
    }

    func end(_ job: UInt64) {
        running.withLock { _ = $0.removeValue(forKey: job) }
    }

    func cancel(_ job: UInt64) -> Bool {
        let task = running.withLock { $0[job] }
        task?.cancel()
        return task != nil
    }
}

func vz_install(job: UInt64, request_json: RustStr) -> Outcome {
    let json = request_json.toString()
    return outcome {
        let request = try VZFailure.decode(InstallRequest.self, "the request to install macOS", json)
        let task = Task.detached {
            try await Installer.install(
                ipsw: request.ipsw, template: request.template, diskBytes: request.disk_bytes,
                cpus: request.cpus, memoryBytes: request.memory_bytes,
                progress: { RustObserver().machine(job, did: .progress($0)) })
        }
        Installations.all.begin(job, task)
        defer { Installations.all.end(job) }
        // An installation has no deadline: it takes as long as the disk needs, and the operator can cancel it.
        try Deadline.run(.max, "installing macOS") { try await task.value }
        return .done
    }
}

func vz_cancel_install(job: UInt64) -> Outcome {
    outcome {
        guard Installations.all.cancel(job) else {
            throw VZFailure(
                code: .noSuchMachine, reason: "there is no running installation \(job)")
        }
        return .done
    }
}

/// "" asks Apple.
func vz_restore_image(path: RustStr, deadline_ms: UInt64) -> Outcome {
    let path = path.toString()
    return outcome {
        let image = try Deadline.run(deadline_ms, "reading the restore image") {
            path.isEmpty
                ? try await Installer.latestRestoreImage() : try await Installer.restoreImage(at: path)
        }
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        return CallResult(value: 0, text: String(decoding: try encoder.encode(image), as: UTF8.self))
    }
}

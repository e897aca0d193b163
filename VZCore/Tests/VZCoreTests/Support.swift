import Darwin
import Dispatch
import Foundation
import Testing
import Virtualization

@testable import VZCore

/// Every suite is in this one: they share what a process has once (the limit of macOS VMs, descriptors, live machines).
@Suite(.serialized, .timeLimit(.minutes(10)))
enum VZCoreTests {}

/// A directory for one test, removed after it.
final class TestDirectory: Sendable {
    let path: String

    init() {
        var template = Array((NSTemporaryDirectory() + "/vzcore.XXXXXX").utf8CString)
        guard let made = mkdtemp(&template) else {
            fatalError("mkdtemp: \(String(cString: strerror(errno)))")
        }
        path = String(cString: made)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    func callAsFunction(_ name: String) -> String { path + "/" + name }

    func write(_ text: String, to name: String) throws {
        try Data(text.utf8).write(to: URL(fileURLWithPath: self(name)))
    }

    func read(_ name: String) throws -> String {
        String(decoding: try Data(contentsOf: URL(fileURLWithPath: self(name))), as: UTF8.self)
    }

    func names(in directory: String = "") throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: self(directory)).sorted()
    }

    func mode(of name: String) throws -> Int {
        var found = stat()
        try #require(lstat(self(name), &found) == 0)
        return Int(found.st_mode & 0o777)
    }
}

/// A guest. The stand-in runs a disk that begins with "#!"; any other is a guest that does nothing and ends when
/// it is stopped.
enum Guest {
    static let idle = "blank"
    static let powersOff = "#!/bin/sh\nexit 0\n"
    static let crashes = "#!/bin/sh\nexit 3\n"
    /// Powers off when asked to.
    static let obedient = "#!/bin/sh\ntrap 'kill $!; exit 0' TERM\necho up\nsleep 1000 &\nwait\n"
    /// Writes where its sockets are to the FIFO `sockets` beside its disk, then does nothing.
    static let talkative = """
        #!/bin/sh
        echo "$VZ_GUEST_VSOCK" > "$(dirname "$VZ_GUEST_DISK")/sockets"
        exec sleep 1000

        """

    /// A disk of whole sectors with that content.
    static func disk(_ content: String, bytes: Int = 4096) -> Data {
        var disk = Data(content.utf8)
        disk.append(Data(count: max(0, bytes - disk.count)))
        disk.append(Data(count: (512 - disk.count % 512) % 512))
        return disk
    }
}

extension TestDirectory {
    /// `VZMacHardwareModel.dataRepresentation` of a Mac for macOS `minimum` or newer.
    static func hardwareModel(minimum: Int = 13) throws -> Data {
        try PropertyListSerialization.data(
            fromPropertyList: [
                "DataRepresentationVersion": 1, "MinimumSupportedOS": [minimum, 0, 0], "PlatformVersion": 2,
            ] as [String: Any],
            format: .binary, options: 0)
    }

    /// A macOS template, whose guest does this. `faults` is JSON for the stand-in.
    @discardableResult
    func template(_ name: String = "template", guest: String = Guest.idle, faults: String = "") throws
        -> String
    {
        try FileManager.default.createDirectory(atPath: self(name), withIntermediateDirectories: false)
        try Guest.disk(guest).write(to: URL(fileURLWithPath: self(name + "/Disk.img")))
        try write(faults.isEmpty ? "aux" : "{\"standin\":{\(faults)}}", to: name + "/AuxiliaryStorage")
        let model = try Self.hardwareModel().base64EncodedString()
        try write("{\"hardwareModel\":\"\(model)\"}", to: name + "/HardwareModel.json")
        return self(name)
    }

    /// A macOS bundle with the same contents.
    func bundle(_ name: String = "vm", guest: String = Guest.idle, faults: String = "") throws -> String {
        try template(name, guest: guest, faults: faults)
        try VZMacMachineIdentifier().dataRepresentation.write(
            to: URL(fileURLWithPath: self(name + "/MachineIdentifier")))
        return self(name)
    }

    /// A Linux bundle that boots from its disk, or from `kernel` in it.
    func linuxBundle(_ name: String = "vm", guest: String = Guest.idle, kernel: String? = nil) throws
        -> String
    {
        try FileManager.default.createDirectory(atPath: self(name), withIntermediateDirectories: false)
        try Guest.disk(guest).write(to: URL(fileURLWithPath: self(name + "/Disk.img")))
        try VZGenericMachineIdentifier().dataRepresentation
            .write(to: URL(fileURLWithPath: self(name + "/MachineIdentifier")))
        if let kernel {
            try write(kernel, to: name + "/kernel")
            try #require(chmod(self(name + "/kernel"), 0o755) == 0)
        }
        return self(name)
    }
}

extension MachineSpec {
    /// A small macOS machine.
    static func small(_ bundle: String, _ adjust: (inout MachineSpec) -> Void = { _ in }) -> MachineSpec {
        var spec = MachineSpec(bundle: bundle, os: .macos, cpus: 2, memoryBytes: 512 << 20, savable: true)
        adjust(&spec)
        return spec
    }
}

/// Keeps every event, and lets a test wait for one.
final class Log: MachineObserver {
    private struct State {
        var events: [MachineEvent] = []
        var waiting:
            [(wanted: @Sendable (MachineEvent) -> Bool, found: CheckedContinuation<MachineEvent, Never>)] = []
    }

    private let state = Locked(State())

    var events: [MachineEvent] { state.with { $0.events } }

    var states: [MachineState] { events.compactMap { if case .state(let state) = $0 { state } else { nil } } }

    func machine(_ id: UInt64, did event: MachineEvent) {
        let found = state.with { state in
            state.events.append(event)
            let found = state.waiting.filter { $0.wanted(event) }.map(\.found)
            state.waiting.removeAll { $0.wanted(event) }
            return found
        }
        for waiting in found { waiting.resume(returning: event) }
    }

    /// The first such event, which may have happened already.
    @discardableResult
    func first(_ wanted: @escaping @Sendable (MachineEvent) -> Bool) async -> MachineEvent {
        await withCheckedContinuation { found in
            let past = state.with { state in
                let past = state.events.first(where: wanted)
                if past == nil { state.waiting.append((wanted, found)) }
                return past
            }
            if let past { found.resume(returning: past) }
        }
    }

    @discardableResult
    func first(_ event: MachineEvent) async -> MachineEvent { await first { $0 == event } }
}

/// A machine whose events are kept; closed at the end of `use`.
func withMachine(_ spec: MachineSpec, _ use: (Machine, Log) async throws -> Void) async throws {
    let log = Log()
    let machine = try Machine(id: 7, spec: spec, observer: log)
    do {
        try await use(machine, log)
    } catch {
        await machine.close()
        throw error
    }
    await machine.close()
}

/// The failure of `body`; a test failure without one.
func failure(
    at location: SourceLocation = #_sourceLocation, of body: () async throws -> Void
) async -> VZFailure {
    do {
        try await body()
        Issue.record("nothing failed", sourceLocation: location)
    } catch let failure as VZFailure {
        return failure
    } catch {
        Issue.record(error, sourceLocation: location)
    }
    return VZFailure(code: .ok, reason: "")
}

/// Returns once `condition` holds; the suite's time limit ends a wait for what never comes.
func until(_ condition: () throws -> Bool) async rethrows {
    while try !condition() { await Task.yield() }
}

/// What this process has open, without the descriptors that looking takes.
func openDescriptors() throws -> [String] {
    try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").compactMap { name in
        (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/fd/" + name)).map {
            "\(name) \($0)"
        }
    }.filter { !$0.hasSuffix("/fd") }.sorted()
}

/// Runs blocking work off the threads Swift's tasks share.
func blocking<Value: Sendable>(_ work: @escaping @Sendable () throws -> Value) async throws -> Value {
    try await withCheckedThrowingContinuation { done in
        Thread.detachNewThread { done.resume(with: Result(catching: work)) }
    }
}

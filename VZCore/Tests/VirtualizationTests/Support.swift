import Foundation
import Synchronization
import Testing

@testable @_spi(StandIn) import Virtualization

/// A directory for one test, and what machines are made of. Removed when it is released.
final class TestDirectory: Sendable {
    let path: String
    /// Macs of this test are not counted with another's.
    let group = UUID().uuidString

    init() throws {
        var template = Array("/tmp/vz-test-XXXXXX".utf8CString)
        try #require(mkdtemp(&template) != nil)
        path = template.withUnsafeBufferPointer { $0.baseAddress.map { String(cString: $0) } ?? "" }
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    func url(_ name: String) -> URL { URL(fileURLWithPath: "\(path)/\(name)") }

    func file(_ name: String, _ content: String = "", mode: mode_t = 0o600) throws -> URL {
        try file(name, Data(content.utf8), mode: mode)
    }

    func file(_ name: String, _ content: Data, mode: mode_t = 0o600) throws -> URL {
        try content.write(to: url(name))
        try #require(chmod(url(name).path, mode) == 0)
        return url(name)
    }

    /// A disk of whole sectors that begins with a text.
    func disk(_ name: String = "Disk.img", _ beginning: String = "", sectors: Int = 16) throws -> URL {
        var content = Data(beginning.utf8)
        content.append(Data(count: max(1, sectors * 512 - content.count)))
        content.append(Data(count: (512 - content.count % 512) % 512))
        return try file(name, content)
    }

    func attached(_ disk: URL, readOnly: Bool = false) throws -> VZStorageDeviceConfiguration {
        VZVirtioBlockDeviceConfiguration(
            attachment: try VZDiskImageStorageDeviceAttachment(url: disk, readOnly: readOnly))
    }

    /// A generic machine that boots a script from its disk. `faults` is the content of "standin".
    func linux(
        _ script: String = "", faults: String = "{}", name: String = "linux"
    ) throws -> VZVirtualMachineConfiguration {
        let configuration = VZVirtualMachineConfiguration()
        configuration.memorySize = 512 << 20
        let efi = VZEFIBootLoader()
        efi.variableStore = VZEFIVariableStore(url: try file("\(name).efi", "{\"standin\": \(faults)}"))
        configuration.bootLoader = efi
        configuration.storageDevices = [try attached(disk("\(name).img", script))]
        configuration.socketDevices = [VZVirtioSocketDeviceConfiguration()]
        return configuration
    }

    /// A Mac that boots a script from its disk.
    func mac(
        _ script: String = "", faults: String = "", name: String = "mac"
    ) throws -> VZVirtualMachineConfiguration {
        let configuration = VZVirtualMachineConfiguration()
        configuration.cpuCount = 2
        configuration.memorySize = 1 << 30
        configuration.bootLoader = VZMacOSBootLoader()
        let platform = VZMacPlatformConfiguration()
        platform.hardwareModel = .make(minimumOS: [13, 0, 0])
        let faults = faults.isEmpty ? "" : ", \(faults)"
        platform.auxiliaryStorage = VZMacAuxiliaryStorage(
            url: try file("\(name).aux", "{\"standin\": {\"limit_group\": \"\(group)\"\(faults)}}"))
        configuration.platform = platform
        configuration.storageDevices = [try attached(disk("\(name).img", script))]
        let network = VZVirtioNetworkDeviceConfiguration()
        network.attachment = VZNATNetworkDeviceAttachment()
        configuration.networkDevices = [network]
        return configuration
    }
}

/// A machine on its queue, asked from tests.
final class Rig: Sendable {
    let queue: DispatchQueue
    let log = Log()
    let console: Console
    nonisolated(unsafe) private let vm: VZVirtualMachine

    /// The configuration gets a serial port, whose lines are in `console`.
    init(_ configuration: VZVirtualMachineConfiguration, faults: Faults? = nil) throws {
        queue = DispatchQueue(label: "test.machine")
        console = try Console()
        let serialPort = VZVirtioConsoleDeviceSerialPortConfiguration()
        serialPort.attachment = console.attachment
        configuration.serialPorts = [serialPort]
        vm = VZVirtualMachine(configuration: configuration, queue: queue)
        let (vm, log) = (Transfer(value: vm), log)
        queue.sync {
            vm.value.delegate = log
            if let faults { vm.value.faults = faults }
        }
    }

    /// Looks at the machine on its queue.
    func look<Value: Sendable>(_ body: @Sendable (VZVirtualMachine) throws -> Value) rethrows -> Value {
        try queue.sync { try body(vm) }
    }

    var state: VZVirtualMachine.State { look { $0.state } }

    /// The machine off its queue, for the tests of just that.
    var astray: VZVirtualMachine { vm }

    func start() async throws { try await ask { $0.start(completionHandler: $1) } }
    func pause() async throws { try await ask { $0.pause(completionHandler: $1) } }
    func resume() async throws { try await ask { $0.resume(completionHandler: $1) } }
    func stop() async throws { try await ask { vm, done in vm.stop { done(Self.result($0)) } } }
    func save(_ url: URL) async throws {
        try await ask { vm, done in vm.saveMachineStateTo(url: url) { done(Self.result($0)) } }
    }
    func restore(_ url: URL) async throws {
        try await ask { vm, done in vm.restoreMachineStateFrom(url: url) { done(Self.result($0)) } }
    }

    /// Asks for something, and returns with the answer.
    func ask<Value: Sendable>(
        _ body: @escaping @Sendable (VZVirtualMachine, @escaping (Result<Value, any Error>) -> Void) -> Void
    ) async throws -> Value {
        let answers = Waiting<Result<Value, any Error>>()
        queue.async { body(self.vm) { answers.add($0) } }
        return try await answers.next().get()
    }

    /// A connection to a port of the guest: its descriptor, which the caller owns.
    func connect(_ port: UInt32) async throws -> Int32 {
        try await ask { vm, done in
            guard let device = vm.socketDevices.first as? VZVirtioSocketDevice else { return }
            device.connect(toPort: port) { result in done(result.map { dup($0.fileDescriptor) }) }
        }
    }

    static func result(_ error: (any Error)?) -> Result<Void, any Error> {
        error.map { .failure($0) } ?? .success(())
    }
}

/// Waits for what sends no event, such as the state of a process that is not a child of this one. The time limit of
/// the suite is the deadline.
func until(_ isSo: () throws -> Bool) async throws {
    while try !isSo() { try await Task.sleep(for: .milliseconds(1)) }
}

/// The error of something that must fail.
func failure<Value: Sendable>(_ body: () async throws -> Value) async -> NSError? {
    do {
        _ = try await body()
        return nil
    } catch {
        return error as NSError
    }
}

func isError(_ error: NSError?, _ code: VZError.Code) -> Bool {
    error?.domain == VZErrorDomain && error?.code == code.rawValue
}

/// The events that a machine's delegate receives, and their queue.
final class Log: NSObject, VZVirtualMachineDelegate, Sendable {
    enum Event: Equatable {
        case stopped(VZVirtualMachine.State)
        case failed(VZVirtualMachine.State, code: Int, reason: String)
        case networkLost(code: Int, isGone: Bool)
    }

    private let events = Waiting<Event>()

    func next() async throws -> Event { try await events.next() }
    var isEmpty: Bool { events.isEmpty }

    func guestDidStop(_ virtualMachine: VZVirtualMachine) { events.add(.stopped(virtualMachine.state)) }

    func virtualMachine(_ virtualMachine: VZVirtualMachine, didStopWithError error: any Error) {
        let error = error as NSError
        events.add(.failed(virtualMachine.state, code: error.code, reason: error.localizedDescription))
    }

    func virtualMachine(
        _ virtualMachine: VZVirtualMachine, networkDevice: VZNetworkDevice,
        attachmentWasDisconnectedWithError error: any Error
    ) {
        events.add(.networkLost(code: (error as NSError).code, isGone: networkDevice.attachment == nil))
    }
}

/// Values in the order they came, for one test to wait for. A test that runs into its time limit waits no
/// longer.
final class Waiting<Value: Sendable>: Sendable {
    private struct Held {
        var values: [Value] = []
        var waiter: CheckedContinuation<Value, any Error>?
    }

    private let held = Mutex(Held())

    var isEmpty: Bool { held.withLock { $0.values.isEmpty } }

    func add(_ value: Value) {
        held.withLock { held in
            guard let waiter = held.waiter else { return held.values.append(value) }
            held.waiter = nil
            waiter.resume(returning: value)
        }
    }

    func next() async throws -> Value {
        try await withTaskCancellationHandler {
            try await withCheckedThrowingContinuation { continuation in
                held.withLock { held in
                    if !held.values.isEmpty {
                        continuation.resume(returning: held.values.removeFirst())
                    } else if Task.isCancelled {
                        continuation.resume(throwing: CancellationError())
                    } else {
                        held.waiter = continuation
                    }
                }
            }
        } onCancel: {
            held.withLock { held in
                held.waiter?.resume(throwing: CancellationError())
                held.waiter = nil
            }
        }
    }
}

/// What a guest or a process writes, line by line. Nil after the last one.
final class Console: Sendable {
    nonisolated(unsafe) let attachment: VZFileHandleSerialPortAttachment
    private let lines = Waiting<String?>()
    private let pipe = Pipe()

    init() throws {
        attachment = VZFileHandleSerialPortAttachment(
            fileHandleForReading: nil, fileHandleForWriting: pipe.fileHandleForWriting)
        let (lines, input) = (lines, pipe.fileHandleForReading.fileDescriptor)
        let copy = fcntl(input, F_DUPFD_CLOEXEC, 3)
        try #require(copy >= 0)
        Thread {
            var rest: [UInt8] = []
            var buffer = [UInt8](repeating: 0, count: 4096)
            while true {
                let count = read(copy, &buffer, buffer.count)
                guard count > 0 else { break }
                rest += buffer[..<count]
                while let end = rest.firstIndex(of: UInt8(ascii: "\n")) {
                    lines.add(String(decoding: rest[..<end], as: UTF8.self))
                    rest.removeSubrange(...end)
                }
            }
            close(copy)
            lines.add(nil)
        }.start()
    }

    var output: FileHandle { pipe.fileHandleForWriting }

    func line() async throws -> String? { try await lines.next() }

    /// The next line that begins so, without its beginning.
    func line(after beginning: String) async throws -> String? {
        while let line = try await line() {
            if line.hasPrefix(beginning) { return String(line.dropFirst(beginning.count)) }
        }
        return nil
    }
}

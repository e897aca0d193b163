import Foundation
@_spi(StandIn) import Virtualization

/// A machine that boots a disk, on a separate queue.
final class Held: @unchecked Sendable {
    let queue = DispatchQueue(label: "probe")
    let vm: VZVirtualMachine

    init(disk: String) throws {
        let configuration = VZVirtualMachineConfiguration()
        configuration.memorySize = 512 << 20
        let store = disk + ".efi"
        unlink(store)
        let efi = VZEFIBootLoader()
        efi.variableStore = try VZEFIVariableStore(creatingVariableStoreAt: URL(fileURLWithPath: store))
        configuration.bootLoader = efi
        configuration.socketDevices = [VZVirtioSocketDeviceConfiguration()]
        let serialPort = VZVirtioConsoleDeviceSerialPortConfiguration()
        serialPort.attachment = VZFileHandleSerialPortAttachment(
            fileHandleForReading: nil, fileHandleForWriting: .standardOutput)
        configuration.serialPorts = [serialPort]
        let image = try VZDiskImageStorageDeviceAttachment(url: URL(fileURLWithPath: disk), readOnly: false)
        configuration.storageDevices = [VZVirtioBlockDeviceConfiguration(attachment: image)]
        vm = VZVirtualMachine(configuration: configuration, queue: queue)
    }

    /// Waits until the machine's answer is there.
    func start() throws { try answer { vm, done in vm.start(completionHandler: done) } }
    func stop() throws {
        try answer { vm, done in vm.stop { done($0.map { .failure($0) } ?? .success(())) } }
    }

    private func answer(
        _ ask: @escaping @Sendable (VZVirtualMachine, @escaping (Result<Void, any Error>) -> Void) -> Void
    ) throws {
        let answered = DispatchSemaphore(value: 0)
        nonisolated(unsafe) var answer: Result<Void, any Error> = .success(())
        queue.async {
            ask(self.vm) {
                answer = $0
                answered.signal()
            }
        }
        answered.wait()
        try answer.get()
    }
}

func made(_ disk: String) -> Held {
    do {
        return try Held(disk: disk)
    } catch {
        say("no machine: \(error)")
        exit(1)
    }
}

func must(_ what: String, _ body: () throws -> Void) {
    do {
        try body()
    } catch {
        say("\(what): \(error)")
        exit(1)
    }
}

/// Runs a machine until it is killed. The guest's output goes to standard output.
func hold(disk: String) {
    let held = made(disk)
    must("start") { try held.start() }
    while true { pause() }
}

/// Runs machines one after the other, and says what is left of them.
func cycles(_ count: Int, disk: String) {
    func cycle() {
        let held = made(disk)
        must("start") { try held.start() }
        must("stop") { try held.stop() }
    }
    // What a process makes once: Dispatch's descriptors, the first threads.
    for _ in 0..<5 { cycle() }
    let before = Leftovers.counted()
    for _ in 0..<count { cycle() }
    let after = Leftovers.counted()
    say("before \(before)")
    say("after \(after)")
}

struct Leftovers: CustomStringConvertible {
    let machines: Int
    let guests: Int
    let descriptors: Int
    let children: Int

    /// Once the machines are released: their last reference is dropped on their queue.
    static func counted() -> Leftovers {
        while StandIn.liveMachines > 0 || StandIn.liveGuests > 0 { sched_yield() }
        let descriptors = (try? FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd"))?.count
        let me = "\(getpid())"
        let processes = (try? FileManager.default.contentsOfDirectory(atPath: "/proc")) ?? []
        let children = processes.filter { process in
            let status = try? String(contentsOfFile: "/proc/\(process)/stat", encoding: .utf8)
            return status?.split(separator: ")").last?.split(separator: " ").dropFirst().first.map(
                String.init) == me
        }
        return Leftovers(
            machines: StandIn.liveMachines, guests: StandIn.liveGuests, descriptors: descriptors ?? -1,
            children: children.count)
    }

    var description: String {
        "machines \(machines) guests \(guests) descriptors \(descriptors) children \(children)"
    }
}

func useTheWrongQueue(disk: String) {
    let held = made(disk)
    say("the state is \(held.vm.state)")
}

func makeAnInvalidMachine() {
    _ = VZVirtualMachine(configuration: VZVirtualMachineConfiguration())
    say("it was made")
}

import Foundation
import VZCore

// A VM process with a window, as the real one is: the main thread runs the main loop, another drives the machine. The
// argument is the bundle; what happens is said line by line.
struct Teller: MachineObserver {
    func machine(_ id: UInt64, did event: MachineEvent) {
        if case .state(let state) = event { say("\(state)") }
    }
}

func say(_ line: String) { FileHandle.standardOutput.write(Data("\(line)\n".utf8)) }

func live(in bundle: String) async throws {
    let spec = MachineSpec(
        bundle: bundle, os: .macos, cpus: 2, memoryBytes: 4 << 30, display: .window)
    let machine = try Machine(id: 1, spec: spec, observer: Teller())
    try await machine.start()
    try await VMWindow.show(machine, title: "probe")
    say("shown")
    await machine.close()
    say("closed")
}

let bundle = CommandLine.arguments[1]
Task.detached {
    do { try await live(in: bundle) } catch { say("\(error)") }
    await VMWindow.stopMainLoop()
}
VMWindow.runMainLoop()
say("the loop returned")

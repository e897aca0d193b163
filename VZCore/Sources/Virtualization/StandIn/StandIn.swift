import Foundation
import Synchronization

/// The stand-in for Virtualization.framework, as far as tests inspect and control it.
///
/// It enforces the framework's rules (the queue, the states, valid configurations, two Macs, files in use, saved
/// states bound to host and configuration) and runs a program as the guest. Which:
/// - for `VZMacOSBootLoader` and `VZEFIBootLoader` the script at the beginning of the first disk, if that begins
///   with `#!`, up to the first zero byte;
/// - for `VZLinuxBootLoader` the kernel, if it may be executed or is a script, with the command line's arguments;
/// - else none: such a guest runs, does nothing, and has to be stopped.
///
/// The program has its process group; its standard streams are the serial port. It finds in its
/// environment `VZ_GUEST_DISK` (the first disk), `VZ_GUEST_MAC`, `VZ_GUEST_CPUS`, `VZ_GUEST_MEMORY` (bytes),
/// `VZ_GUEST_RESTORED=1` after a restoration, `VZ_GUEST_RECOVERY=1` in recovery, `PATH`, and `HOME`, a directory
/// that is removed with it; and with a socket device `VZ_GUEST_VSOCK`, a directory where it listens on port 7 as the
/// Unix socket `guest-7`, and reaches the host's port 7 as `host-7`. Exit status 0 is a power-off, any other end a
/// crash, SIGTERM the power button. Nothing of it outlives this process (`GuestWatchdog`).
// spi: tests look behind the framework's surface
@_spi(StandIn) public enum StandIn {
    /// Virtual machines that exist, in this process.
    // spi: leak tests
    @_spi(StandIn) public static var liveMachines: Int { machines.load(ordering: .sequentiallyConsistent) }
    /// Guests that run or are paused, or whose remains are being cleared away.
    // spi: leak tests
    @_spi(StandIn) public static var liveGuests: Int { guests.load(ordering: .sequentiallyConsistent) }
    /// Connections between host and guests that are open on the host's side.
    // spi: leak tests
    @_spi(StandIn) public static var liveConnections: Int {
        connections.load(ordering: .sequentiallyConsistent)
    }

    /// Mistakes in the use of the framework (a wrong queue, an invalid configuration), which end the process
    /// on macOS. Here too; but while `body` runs, on its thread, they are collected, and the call goes on as
    /// if all were well.
    // spi: tests of the rules
    @_spi(StandIn) public static func violations(during body: () throws -> Void) rethrows -> [String] {
        try Violations.collect(during: body)
    }

    /// What `VZMacOSRestoreImage.fetchLatestSupported` finds; nil: nothing, the catalog cannot be loaded.
    // spi: there is no catalog to ask
    @_spi(StandIn) public static var latestRestoreImage: URL? {
        get { latest.withLock { $0 } }
        set { latest.withLock { $0 = newValue } }
    }

    static let machines = Atomic(0)
    static let guests = Atomic(0)
    static let connections = Atomic(0)
    private static let latest = Lock<URL?>(nil)
}

extension Atomic<Int> {
    func increment() { wrappingAdd(1, ordering: .sequentiallyConsistent) }
    func decrement() { wrappingSubtract(1, ordering: .sequentiallyConsistent) }
}

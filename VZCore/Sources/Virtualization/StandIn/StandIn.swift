import Foundation
import Synchronization

/// What tests see of the stand-in and tell it.
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

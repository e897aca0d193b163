import Foundation

/// The Mac the stand-in plays: the same everywhere, so that what is valid does not depend on the machine.
struct StandInHost: Sendable {
    let cpus: Int
    let memory: UInt64
    let minimumMemory: UInt64
    let operatingSystem: [Int]

    static let current = StandInHost(
        cpus: 8, memory: 16 << 30, minimumMemory: 128 << 20, operatingSystem: [26, 0, 0])
}

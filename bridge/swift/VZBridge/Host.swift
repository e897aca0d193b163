import Foundation
import VZCore

/// The host's limits as JSON, for `shoes_vz_bridge::host`.
enum Host {
    private struct Limits: Encodable {
        let supported: Bool
        let min_cpus: Int
        let max_cpus: Int
        let min_memory_bytes: UInt64
        let max_memory_bytes: UInt64
    }

    static func json(_ limits: HostLimits) throws -> String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = .sortedKeys
        let bytes = try encoder.encode(
            Limits(
                supported: limits.isSupported, min_cpus: limits.minimumCPUs, max_cpus: limits.maximumCPUs,
                min_memory_bytes: limits.minimumMemoryBytes, max_memory_bytes: limits.maximumMemoryBytes))
        return String(decoding: bytes, as: UTF8.self)
    }
}

import Virtualization

/// The framework's limits for one VM on this host.
public struct HostLimits: Sendable, Equatable {
    /// Whether this host can run VMs at all (`VZVirtualMachine.isSupported`).
    public let isSupported: Bool
    public let minimumCPUs: Int
    public let maximumCPUs: Int
    public let minimumMemoryBytes: UInt64
    public let maximumMemoryBytes: UInt64

    public static var current: HostLimits {
        HostLimits(
            isSupported: VZVirtualMachine.isSupported,
            minimumCPUs: VZVirtualMachineConfiguration.minimumAllowedCPUCount,
            maximumCPUs: VZVirtualMachineConfiguration.maximumAllowedCPUCount,
            minimumMemoryBytes: VZVirtualMachineConfiguration.minimumAllowedMemorySize,
            maximumMemoryBytes: VZVirtualMachineConfiguration.maximumAllowedMemorySize)
    }

    /// The nearest allowed number of CPUs.
    func cpus(nearest wanted: Int) -> Int { min(max(wanted, minimumCPUs), maximumCPUs) }

    /// The nearest allowed size: between the bounds and, as `VZVirtualMachineConfiguration.memorySize` requires,
    /// whole mebibytes (rounded down).
    func memoryBytes(nearest wanted: UInt64) -> UInt64 {
        let mebibyte: UInt64 = 1 << 20
        return min(max(wanted, minimumMemoryBytes), maximumMemoryBytes) / mebibyte * mebibyte
    }
}

import Foundation
import Virtualization

/// A validated `VZVirtualMachineConfiguration` and the resources that must live as long as its VM.
///
/// The devices stand in one fixed order and depend on the spec alone: a saved state needs an identical configuration.
final class Configuration {
    let vz = VZVirtualMachineConfiguration()
    let effective: Machine.Effective
    let saveSupport: VZFailure?
    let spec: MachineSpec
    /// Descriptors and networks the VM uses; they are released after the VM.
    let resources: HostResources

    /// - Throws: `invalidConfiguration`, `diskImage`, `notSupported`, `network`, `io`.
    init(_ spec: MachineSpec) throws(VZFailure) {
        let doing = "configuring the VM of \(spec.bundle)"
        let limits = HostLimits.current
        guard limits.isSupported else {
            throw VZFailure(
                code: .notSupported,
                reason: "\(doing): this host cannot run VMs (VZVirtualMachine.isSupported)")
        }
        let files = BundleFiles(spec.bundle)
        let resources = HostResources()

        vz.cpuCount = limits.cpus(nearest: spec.cpus)
        vz.memorySize = limits.memoryBytes(nearest: spec.memoryBytes)
        switch spec.os {
        case .macos: try vz.setUpMacOS(files)
        case .linux: try vz.setUpLinux(files, spec)
        }
        vz.storageDevices = [try .disk(files, spec.diskSync)]
        if let network = try VZNetworkDeviceConfiguration.make(spec, resources) {
            vz.networkDevices = [network]
        }
        vz.socketDevices = [VZVirtioSocketDeviceConfiguration()]
        vz.memoryBalloonDevices = [VZVirtioTraditionalMemoryBalloonDeviceConfiguration()]
        if !spec.savable { vz.entropyDevices = [VZVirtioEntropyDeviceConfiguration()] }
        if !spec.consoleLog.isEmpty {
            vz.serialPorts = [try .appending(to: spec.path(spec.consoleLog), resources)]
        }

        do { try vz.validate() } catch {
            throw VZFailure(error, doing: doing, otherwise: .invalidConfiguration)
        }
        self.spec = spec
        self.resources = resources
        saveSupport = Self.saveSupport(of: vz, spec)
        effective = Machine.Effective(
            cpus: vz.cpuCount, memoryBytes: vz.memorySize,
            macAddress: vz.networkDevices.first?.macAddress.string)
    }

    private static func saveSupport(of vz: VZVirtualMachineConfiguration, _ spec: MachineSpec) -> VZFailure? {
        do {
            try vz.validateSaveRestoreSupport()
            return nil
        } catch {
            return VZFailure(
                error, doing: "saving the state of the VM of \(spec.bundle)", otherwise: .notSupported)
        }
    }
}

/// Host resources a VM uses without owning them.
final class HostResources {
    private var handles: [FileHandle] = []
    private var networks: [IsolatedNetwork] = []

    func keep(_ handle: FileHandle) { handles.append(handle) }
    func keep(_ network: IsolatedNetwork) { networks.append(network) }

    deinit {
        // Closing one of these descriptors fails only if it is already closed.
        for handle in handles { try? handle.close() }
    }
}

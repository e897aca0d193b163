import Darwin
import Foundation
import Virtualization

extension VZStorageDeviceConfiguration {
    /// The bundle's disk, through the host's page cache. The spec decides how far the guest's flushes reach.
    static func disk(
        _ files: BundleFiles, _ sync: MachineSpec.DiskSync
    ) throws(VZFailure) -> VZStorageDeviceConfiguration {
        do {
            return VZVirtioBlockDeviceConfiguration(
                attachment: try VZDiskImageStorageDeviceAttachment(
                    url: URL(fileURLWithPath: files.disk), readOnly: false, cachingMode: .cached,
                    synchronizationMode: sync.mode))
        } catch {
            throw VZFailure(error, doing: "opening the disk \(files.disk)", otherwise: .diskImage)
        }
    }
}

extension MachineSpec.DiskSync {
    fileprivate var mode: VZDiskImageSynchronizationMode {
        switch self {
        case .none: .none
        case .fsync: .fsync
        case .full: .full
        }
    }
}

extension VZNetworkDeviceConfiguration {
    /// The one network device; nil for `network` "none".
    static func make(_ spec: MachineSpec, _ resources: HostResources) throws(VZFailure)
        -> VZNetworkDeviceConfiguration?
    {
        let device = VZVirtioNetworkDeviceConfiguration()
        switch spec.network {
        case .none: return nil
        case .nat: device.attachment = VZNATNetworkDeviceAttachment()
        case .vmnet:
            let network = try IsolatedNetwork(for: spec.bundle)
            resources.keep(network)
            device.attachment = network.attachment
        }
        // `MachineSpec.check` has validated the spec's address.
        device.macAddress =
            spec.macAddress.flatMap(VZMACAddress.init(string:)) ?? VZMACAddress.randomLocallyAdministered()
        return device
    }
}

extension VZSerialPortConfiguration {
    /// A serial console that appends to a file and reads nothing.
    static func appending(to path: String, _ resources: HostResources) throws(VZFailure)
        -> VZSerialPortConfiguration
    {
        let reading = try FileHandle.opened("/dev/null", O_RDONLY)
        resources.keep(reading)
        let writing = try FileHandle.opened(path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW)
        resources.keep(writing)
        let port = VZVirtioConsoleDeviceSerialPortConfiguration()
        port.attachment = VZFileHandleSerialPortAttachment(
            fileHandleForReading: reading, fileHandleForWriting: writing)
        return port
    }
}

extension FileHandle {
    /// Opens a file with mode 0600 where it is created, close-on-exec.
    fileprivate static func opened(_ path: String, _ flags: Int32) throws(VZFailure) -> FileHandle {
        let descriptor = open(path, flags | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else {
            throw VZFailure(errno: errno, doing: "opening \(path) for the serial console")
        }
        return FileHandle(fileDescriptor: descriptor, closeOnDealloc: true)
    }
}

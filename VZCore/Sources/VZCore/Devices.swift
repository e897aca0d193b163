import Darwin
import Foundation
import Virtualization

extension VZStorageDeviceConfiguration {
    /// The bundle's disk, through the host's page cache. What a flush of the guest's reaches is the spec's choice.
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
    static func make(_ spec: MachineSpec, _ held: Held) throws(VZFailure) -> VZNetworkDeviceConfiguration? {
        let device = VZVirtioNetworkDeviceConfiguration()
        switch spec.network {
        case .none: return nil
        case .nat: device.attachment = VZNATNetworkDeviceAttachment()
        case .vmnet:
            let network = try OwnNetwork(for: spec.bundle)
            held.keep(network)
            device.attachment = network.attachment
        }
        // The spec's address was found good when the spec was checked.
        device.macAddress =
            spec.macAddress.flatMap(VZMACAddress.init(string:)) ?? VZMACAddress.randomLocallyAdministered()
        return device
    }
}

extension VZSerialPortConfiguration {
    /// A serial console that appends to a file and reads nothing.
    static func appending(to path: String, _ held: Held) throws(VZFailure) -> VZSerialPortConfiguration {
        let reading = try FileHandle.opened("/dev/null", O_RDONLY)
        held.keep(reading)
        let writing = try FileHandle.opened(path, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW)
        held.keep(writing)
        let port = VZVirtioConsoleDeviceSerialPortConfiguration()
        port.attachment = VZFileHandleSerialPortAttachment(
            fileHandleForReading: reading, fileHandleForWriting: writing)
        return port
    }
}

extension FileHandle {
    /// A file of this process's alone: 0600 where it is made, closed in programs started from here.
    fileprivate static func opened(_ path: String, _ flags: Int32) throws(VZFailure) -> FileHandle {
        let descriptor = open(path, flags | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else {
            throw VZFailure(errno: errno, doing: "opening the serial console's \(path)")
        }
        return FileHandle(fileDescriptor: descriptor, closeOnDealloc: true)
    }
}

import Foundation
import Virtualization

/// Everything one machine is made from. As JSON its keys are in snake_case; only `mac_address` and `linux` may be left
/// out, and unknown keys are refused.
///
/// The bundle holds `Disk.img` and `MachineIdentifier` and, for macOS, `AuxiliaryStorage` and `HardwareModel.json`.
public struct MachineSpec: Codable, Sendable, Equatable {
    /// What runs in the guest.
    public enum OS: String, Codable, Sendable {
        case macos
        case linux
    }

    /// How the guest reaches the world.
    public enum Network: String, Codable, Sendable {
        /// The host's shared NAT network.
        case nat
        /// A NAT network for this VM alone: no other guest is on it.
        case vmnet
        /// No network device.
        case none
    }

    /// Whether a person can look at the guest.
    public enum Display: String, Codable, CaseIterable, Sendable {
        /// No window.
        case headless
        /// A window (`VMWindow`); the machine lives on the main queue.
        case window
    }

    /// How far a guest's flush reaches on the host (`VZDiskImageSynchronizationMode`).
    public enum DiskSync: String, Codable, CaseIterable, Sendable {
        /// Nowhere: fastest, and the image is lost when the host fails. For disks of a single run.
        case none
        /// To the drive.
        case fsync
        /// To the drive's permanent storage.
        case full
    }

    /// What a Linux guest boots.
    public struct Linux: Codable, Sendable, Equatable {
        /// The kernel; a path in the bundle or an absolute one; "" with `efi`.
        public var kernel: String
        /// The initial RAM disk; a path of the same kind; "" = none.
        public var initrd: String
        /// The kernel's command line.
        public var commandLine: String
        /// Boot by EFI from the disk instead.
        public var efi: Bool

        public init(kernel: String = "", initrd: String = "", commandLine: String = "", efi: Bool = false) {
            self.kernel = kernel
            self.initrd = initrd
            self.commandLine = commandLine
            self.efi = efi
        }

        enum CodingKeys: String, CodingKey {
            case kernel, initrd
            case commandLine = "command_line"
            case efi
        }
    }

    /// The bundle's directory, absolute.
    public var bundle: String
    /// What runs in the guest.
    public var os: OS
    /// Virtual CPUs; the nearest the host allows is used (`Machine.effective`).
    public var cpus: Int
    /// Memory in bytes; the nearest the host allows is used.
    public var memoryBytes: UInt64
    /// The network device's address ("52:54:00:12:34:56"); nil = a random one.
    public var macAddress: String?
    /// How the guest reaches the world.
    public var network: Network
    /// Window or none.
    public var display: Display
    /// How far a guest's flush reaches.
    public var diskSync: DiskSync
    /// Where the serial console is appended: a file name in the bundle or an absolute path; "" = no serial console.
    public var consoleLog: String
    /// What a Linux guest boots; nil for macOS.
    public var linux: Linux?
    /// The vsock ports the guest may connect to (`MachineEvent.guestConnected`).
    public var vsockListen: [UInt32]
    /// Leaves out the devices a saved state cannot hold (the entropy device), so that `Machine.save` can work. A state
    /// is restored only by a machine whose spec has the same value here.
    public var savable: Bool

    public init(
        bundle: String, os: OS, cpus: Int, memoryBytes: UInt64, macAddress: String? = nil,
        network: Network = .nat,
        display: Display = .headless, diskSync: DiskSync = .none, consoleLog: String = "",
        linux: Linux? = nil,
        vsockListen: [UInt32] = [], savable: Bool = false
    ) {
        self.bundle = bundle
        self.os = os
        self.cpus = cpus
        self.memoryBytes = memoryBytes
        self.macAddress = macAddress
        self.network = network
        self.display = display
        self.diskSync = diskSync
        self.consoleLog = consoleLog
        self.linux = linux
        self.vsockListen = vsockListen
        self.savable = savable
    }

    enum CodingKeys: String, CodingKey, CaseIterable {
        case bundle, os, cpus
        case memoryBytes = "memory_bytes"
        case macAddress = "mac_address"
        case network, display
        case diskSync = "disk_sync"
        case consoleLog = "console_log"
        case linux
        case vsockListen = "vsock_listen"
        case savable
    }
}

extension MachineSpec {
    /// Reads a spec from its JSON. `check` looks at the values.
    /// - Throws: `badSpec` with the first key that is unknown, missing or of another type.
    public static func parse(_ json: String) throws(VZFailure) -> MachineSpec {
        let what = "the machine's settings"
        let known = Set(CodingKeys.allCases.map(\.rawValue))
        let keys = try VZFailure.decode([String: AnyValue].self, what, json).keys
        if let unknown = keys.filter({ !known.contains($0) }).min() {
            throw VZFailure(code: .badSpec, reason: "reading \(what): the key \(unknown) is unknown")
        }
        return try VZFailure.decode(MachineSpec.self, what, json)
    }

    private struct AnyValue: Decodable {
        init(from _: any Decoder) {}
    }

    /// - Throws: `badSpec` with the first value that no machine can be made from.
    func check() throws(VZFailure) {
        let reason: String? =
            if !bundle.hasPrefix("/") {
                "bundle must be an absolute path, not \"\(bundle)\""
            } else if cpus < 1 {
                "cpus must be at least 1, not \(cpus)"
            } else if memoryBytes == 0 {
                "memory_bytes must be more than 0"
            } else if let macAddress, !Self.isUnicast(macAddress) {
                "mac_address must be a unicast address like 52:54:00:12:34:56, not \"\(macAddress)\""
            } else if linux != nil && os == .macos {
                "linux is for os linux only"
            } else if let linux, linux.efi == !linux.kernel.isEmpty {
                "linux needs either a kernel or efi, not both"
            } else if let port = vsockListen.first(where: { $0 == 0 || $0 == .max }) {
                "vsock_listen has \(port), which is not a port"
            } else if Set(vsockListen).count != vsockListen.count {
                "vsock_listen names a port twice"
            } else {
                nil
            }
        if let reason {
            throw VZFailure(code: .badSpec, reason: "checking the machine's settings: \(reason)")
        }
    }

    private static func isUnicast(_ address: String) -> Bool {
        guard VZMACAddress(string: address) != nil, let first = UInt8(address.prefix(2), radix: 16) else {
            return false
        }
        return first & 1 == 0
    }

    /// A path of the spec's, taken from the bundle unless it is absolute.
    func path(_ name: String) -> String { name.hasPrefix("/") ? name : bundle + "/" + name }
}

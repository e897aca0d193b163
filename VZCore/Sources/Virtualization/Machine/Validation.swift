import Foundation

/// What makes a configuration valid, and fit to be saved.
enum Validation {
    static func check(_ configuration: VZVirtualMachineConfiguration) throws {
        try checkSize(configuration)
        try checkBoot(configuration)
        try checkStorage(configuration)
        try checkNetwork(configuration)
        guard configuration.socketDevices.count <= 1 else {
            throw VZError.configuration("The virtual machine has more than one Virtio socket device.")
        }
        guard configuration.memoryBalloonDevices.count <= 1 else {
            throw VZError.configuration("The virtual machine has more than one memory balloon device.")
        }
        try checkGraphics(configuration)
    }

    static func checkSaveRestore(_ configuration: VZVirtualMachineConfiguration) throws {
        try check(configuration)
        let usb: [NSObject] =
            configuration.keyboards.filter { $0 is VZUSBKeyboardConfiguration }
            + configuration.pointingDevices.filter { $0 is VZUSBScreenCoordinatePointingDeviceConfiguration }
        if let device = usb.first { throw unsaveable("a \(type(of: device))") }
        let faults = MachinePlan.faultFiles(configuration).lazy.compactMap { StandInFile($0)?.faults }.first
        if faults?.noSave == true { throw unsaveable("a fault that was asked for") }
    }

    private static func unsaveable(_ what: String) -> VZError {
        VZError(
            .invalidVirtualMachineConfiguration, failure: "Invalid virtual machine configuration.",
            reason: "A virtual machine with \(what) cannot be saved or restored.")
    }

    private static func checkSize(_ configuration: VZVirtualMachineConfiguration) throws {
        let kind = VZVirtualMachineConfiguration.self
        guard (kind.minimumAllowedCPUCount...kind.maximumAllowedCPUCount).contains(configuration.cpuCount)
        else {
            throw VZError.configuration("The number of CPUs, \(configuration.cpuCount), is not allowed.")
        }
        let memory = configuration.memorySize
        guard (kind.minimumAllowedMemorySize...kind.maximumAllowedMemorySize).contains(memory) else {
            throw VZError.configuration("The memory size, \(memory) bytes, is not allowed.")
        }
        guard memory % (1 << 20) == 0 else {
            throw VZError.configuration("The memory size, \(memory) bytes, is not a multiple of 1 MiB.")
        }
    }

    private static func checkBoot(_ configuration: VZVirtualMachineConfiguration) throws {
        let mac = configuration.platform as? VZMacPlatformConfiguration
        switch configuration.bootLoader {
        case nil: throw VZError.configuration("The boot loader is not set.")
        case is VZMacOSBootLoader:
            guard let mac else {
                throw VZError.configuration("VZMacOSBootLoader needs a VZMacPlatformConfiguration.")
            }
            try checkMac(mac)
        case let loader?:
            guard mac == nil else {
                throw VZError.configuration("VZMacPlatformConfiguration needs a VZMacOSBootLoader.")
            }
            try checkLoader(loader)
        }
    }

    private static func checkMac(_ mac: VZMacPlatformConfiguration) throws {
        guard mac.hardwareModel.isSupported else {
            throw VZError.configuration("The hardware model is not set, or not supported on this host.")
        }
        guard let storage = mac.auxiliaryStorage else {
            throw VZError.configuration("The auxiliary storage is not set.")
        }
        guard access(storage.url.path, R_OK | W_OK) == 0 else {
            throw VZError.configuration(
                "The auxiliary storage \(storage.url.path) cannot be opened.",
                underlying: NSError.posix(errno))
        }
        let its = StandInFile(storage.url)?.hardwareModel.map {
            VZMacHardwareModel(dataRepresentation: $0)?.model
        }
        guard its == nil || its == mac.hardwareModel.model else {
            throw VZError.configuration("The auxiliary storage was made for another hardware model.")
        }
    }

    private static func checkLoader(_ loader: VZBootLoader) throws {
        switch loader {
        case let linux as VZLinuxBootLoader:
            for file in [linux.kernelURL, linux.initialRamdiskURL].compactMap({ $0 }) {
                guard access(file.path, R_OK) == 0 else {
                    throw VZError.configuration(
                        "The boot loader is invalid: \(file.path) cannot be read.",
                        underlying: NSError.posix(errno))
                }
            }
        case let efi as VZEFIBootLoader:
            guard let store = efi.variableStore, access(store.url.path, R_OK | W_OK) == 0 else {
                throw VZError.configuration("The boot loader is invalid: it has no EFI variable store.")
            }
        default: throw VZError.configuration("The boot loader is invalid.")
        }
    }

    private static func checkStorage(_ configuration: VZVirtualMachineConfiguration) throws {
        for device in configuration.storageDevices {
            if let disk = device as? VZVirtioBlockDeviceConfiguration {
                try type(of: disk).validateBlockDeviceIdentifier(disk.blockDeviceIdentifier)
            }
            guard let image = device.attachment as? VZDiskImageStorageDeviceAttachment else { continue }
            do {
                try DiskImage.check(image.url, readOnly: image.isReadOnly)
            } catch {
                throw VZError.configuration("The storage device attachment is invalid.", underlying: error)
            }
        }
    }

    private static func checkNetwork(_ configuration: VZVirtualMachineConfiguration) throws {
        for device in configuration.networkDevices {
            guard device.attachment != nil else {
                throw VZError.configuration(
                    "The network device \(device.macAddress.string) has no attachment.")
            }
            guard device.macAddress.isUnicastAddress else {
                throw VZError.configuration(
                    "The MAC address \(device.macAddress.string) is not a unicast address.")
            }
        }
    }

    private static func checkGraphics(_ configuration: VZVirtualMachineConfiguration) throws {
        guard configuration.graphicsDevices.count <= 1 else {
            throw VZError.configuration("The virtual machine has more than one graphics device.")
        }
        let isMac = configuration.platform is VZMacPlatformConfiguration
        switch configuration.graphicsDevices.first {
        case let mac as VZMacGraphicsDeviceConfiguration:
            guard isMac else {
                throw VZError.configuration("Mac graphics need a VZMacPlatformConfiguration.")
            }
            guard mac.displays.count == 1 else {
                throw VZError.configuration(
                    "The graphics device has \(mac.displays.count) displays, not one.")
            }
        case let virtio as VZVirtioGraphicsDeviceConfiguration:
            guard !isMac else { throw VZError.configuration("Virtio graphics do not go with a Mac.") }
            guard virtio.scanouts.count == 1 else {
                throw VZError.configuration(
                    "The graphics device has \(virtio.scanouts.count) scanouts, not one.")
            }
        default: break
        }
    }
}

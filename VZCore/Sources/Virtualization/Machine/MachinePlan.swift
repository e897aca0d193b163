import Foundation

/// A configuration as it was when a machine was made of it.
struct MachinePlan: Sendable {
    enum Boot: Sendable {
        case disk
        case kernel(URL, arguments: [String])
    }

    struct Disk: Sendable {
        let url: URL
        let isReadOnly: Bool
    }

    let cpus: Int
    let memory: UInt64
    /// Of a Mac.
    let hardwareModel: VZMacHardwareModel.Model?
    let boot: Boot
    let disks: [Disk]
    let auxiliaryStorage: URL?
    /// Where faults may be asked for.
    let faultFiles: [URL]
    let macAddresses: [String]
    let hasSockets: Bool
    /// What else a saved state depends on.
    private let identity: [String]

    init(_ configuration: VZVirtualMachineConfiguration) {
        cpus = configuration.cpuCount
        memory = configuration.memorySize
        let mac = configuration.platform as? VZMacPlatformConfiguration
        hardwareModel = mac?.hardwareModel.model
        disks = configuration.storageDevices.compactMap { device in
            (device.attachment as? VZDiskImageStorageDeviceAttachment).map {
                Disk(url: $0.url, isReadOnly: $0.isReadOnly)
            }
        }
        auxiliaryStorage = mac?.auxiliaryStorage?.url
        macAddresses = configuration.networkDevices.map(\.macAddress.string)
        hasSockets = !configuration.socketDevices.isEmpty
        faultFiles = Self.faultFiles(configuration)
        let linux = configuration.bootLoader as? VZLinuxBootLoader
        boot =
            linux.map {
                .kernel($0.kernelURL, arguments: $0.commandLine.split(separator: " ").map(String.init))
            }
            ?? .disk
        identity = Self.identity(configuration)
    }

    /// What a saved state is bound to. Not the files' places: a state is restored with clones of the files it
    /// was saved with.
    var fingerprint: String {
        let sizes = disks.map { disk -> String in
            let size = (try? FileManager.default.attributesOfItem(atPath: disk.url.path))?[.size]
            return "disk \(size ?? "missing") \(disk.isReadOnly)"
        }
        return (identity + sizes).joined(separator: "\n")
    }

    static func faultFiles(_ configuration: VZVirtualMachineConfiguration) -> [URL] {
        let mac = configuration.platform as? VZMacPlatformConfiguration
        let linux = configuration.bootLoader as? VZLinuxBootLoader
        let efi = configuration.bootLoader as? VZEFIBootLoader
        return [mac?.auxiliaryStorage?.url, efi?.variableStore?.url, linux?.initialRamdiskURL].compactMap {
            $0
        }
    }

    private static func identity(_ configuration: VZVirtualMachineConfiguration) -> [String] {
        var lines = ["cpus \(configuration.cpuCount)", "memory \(configuration.memorySize)"]
        switch configuration.platform {
        case let mac as VZMacPlatformConfiguration:
            lines.append("model \(mac.hardwareModel.model.map { "\($0)" } ?? "")")
            lines.append("mac \(mac.machineIdentifier.dataRepresentation.base64EncodedString())")
        case let generic as VZGenericPlatformConfiguration:
            lines.append("machine \(generic.machineIdentifier.dataRepresentation.base64EncodedString())")
        default: break
        }
        if let linux = configuration.bootLoader as? VZLinuxBootLoader {
            lines.append("line \(linux.commandLine)")
        }
        for device in configuration.networkDevices {
            lines.append(
                "network \(device.macAddress.string) \(device.attachment.map { "\(type(of: $0))" } ?? "")")
        }
        for device in configuration.graphicsDevices { lines.append(describe(device)) }
        let others: [[NSObject]] = [
            [configuration.bootLoader].compactMap { $0 }, configuration.storageDevices,
            configuration.entropyDevices,
            configuration.memoryBalloonDevices, configuration.serialPorts, configuration.socketDevices,
            configuration.keyboards, configuration.pointingDevices,
        ]
        return lines + others.flatMap { $0.map { "\(type(of: $0))" } }
    }

    private static func describe(_ device: VZGraphicsDeviceConfiguration) -> String {
        let displays: [String]
        switch device {
        case let mac as VZMacGraphicsDeviceConfiguration:
            displays = mac.displays.map { "\($0.widthInPixels)x\($0.heightInPixels)@\($0.pixelsPerInch)" }
        case let virtio as VZVirtioGraphicsDeviceConfiguration:
            displays = virtio.scanouts.map { "\($0.widthInPixels)x\($0.heightInPixels)" }
        default: displays = []
        }
        return "graphics \(type(of: device)) \(displays.joined(separator: " "))"
    }
}

import Foundation
import Virtualization

extension VZVirtualMachineConfiguration {
    /// Platform, boot loader and screen of a macOS guest.
    func setUpMacOS(_ files: BundleFiles) throws(VZFailure) {
        let mac = VZMacPlatformConfiguration()
        mac.hardwareModel = try files.readHardwareModel()
        mac.machineIdentifier = try files.readMacIdentifier()
        mac.auxiliaryStorage = VZMacAuxiliaryStorage(url: try files.existing(files.auxiliaryStorage))
        platform = mac
        bootLoader = VZMacOSBootLoader()
        // VZVirtualMachineConfiguration.h requires screen, keyboard and trackpad for macOS. They are configured without
        // a window too, so that one configuration, and one saved state, serves both. Mac models, not USB ones: USB
        // devices prevent saving the state.
        let graphics = VZMacGraphicsDeviceConfiguration()
        graphics.displays = [
            VZMacGraphicsDisplayConfiguration(
                widthInPixels: Screen.width, heightInPixels: Screen.height,
                pixelsPerInch: Screen.pixelsPerInch)
        ]
        graphicsDevices = [graphics]
        keyboards = [VZMacKeyboardConfiguration()]
        pointingDevices = [VZMacTrackpadConfiguration()]
    }

    /// Platform, boot loader and, with a window, screen of a Linux guest.
    func setUpLinux(_ files: BundleFiles, _ spec: MachineSpec) throws(VZFailure) {
        let generic = VZGenericPlatformConfiguration()
        generic.machineIdentifier = try files.readGenericIdentifier()
        platform = generic
        let linux = spec.linux ?? MachineSpec.Linux(efi: true)
        bootLoader = linux.efi ? try efiBootLoader(files) : try linuxBootLoader(linux, files, spec)
        guard spec.display == .window else { return }
        let graphics = VZVirtioGraphicsDeviceConfiguration()
        graphics.scanouts = [
            VZVirtioGraphicsScanoutConfiguration(widthInPixels: Screen.width, heightInPixels: Screen.height)
        ]
        graphicsDevices = [graphics]
        keyboards = [VZUSBKeyboardConfiguration()]
        pointingDevices = [VZUSBScreenCoordinatePointingDeviceConfiguration()]
    }

    private func efiBootLoader(_ files: BundleFiles) throws(VZFailure) -> VZBootLoader {
        let loader = VZEFIBootLoader()
        let url = URL(fileURLWithPath: files.variableStore)
        do {
            loader.variableStore =
                FileManager.default.fileExists(atPath: files.variableStore)
                ? VZEFIVariableStore(url: url)
                : try VZEFIVariableStore(creatingVariableStoreAt: url, options: [])
        } catch {
            throw VZFailure(
                error, doing: "creating the EFI variable store \(files.variableStore)", otherwise: .io)
        }
        return loader
    }

    private func linuxBootLoader(
        _ linux: MachineSpec.Linux, _ files: BundleFiles, _ spec: MachineSpec
    ) throws(VZFailure) -> VZBootLoader {
        let loader = VZLinuxBootLoader(kernelURL: try files.existing(spec.path(linux.kernel)))
        loader.commandLine = linux.commandLine
        if !linux.initrd.isEmpty { loader.initialRamdiskURL = try files.existing(spec.path(linux.initrd)) }
        return loader
    }
}

/// The guest's screen, with or without a window.
enum Screen {
    static let width = 1024
    static let height = 768
    static let pixelsPerInch = 72
}

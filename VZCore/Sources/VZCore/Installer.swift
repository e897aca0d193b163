import Foundation
import Virtualization

/// Creates templates by installing macOS from a restore image (IPSW).
public enum Installer {
    /// A restore image and its requirements.
    public struct RestoreImage: Codable, Sendable, Equatable {
        /// A file URL, or Apple's download URL.
        public let url: String
        /// "25A354".
        public let build: String
        /// "26.0.1".
        public let version: String
        /// Whether this host can run it.
        public let isSupported: Bool
        /// The minimum for its guest.
        public let minimumCPUs: Int
        public let minimumMemoryBytes: UInt64
        /// `VZMacHardwareModel.dataRepresentation`; nil when this host cannot run it.
        public let hardwareModel: Data?

        init(_ image: VZMacOSRestoreImage) {
            let version = image.operatingSystemVersion
            let needs = image.mostFeaturefulSupportedConfiguration
            url = image.url.absoluteString
            build = image.buildVersion
            self.version = "\(version.majorVersion).\(version.minorVersion).\(version.patchVersion)"
            isSupported = needs.map { $0.hardwareModel.isSupported } ?? false
            minimumCPUs = needs?.minimumSupportedCPUCount ?? 0
            minimumMemoryBytes = needs?.minimumSupportedMemorySize ?? 0
            hardwareModel = needs?.hardwareModel.dataRepresentation
        }
    }

    /// Reads the restore image file at `path`.
    /// - Throws: `installFailed`, `cancelled`.
    public static func restoreImage(at path: String) async throws(VZFailure) -> RestoreImage {
        try await image("reading the restore image \(path)") { done in
            VZMacOSRestoreImage.load(from: URL(fileURLWithPath: path), completionHandler: done)
        }
    }

    /// Asks Apple for the newest restore image that this host can run, for downloading.
    /// - Throws: `installFailed`, `cancelled`.
    public static func latestRestoreImage() async throws(VZFailure) -> RestoreImage {
        try await image("requesting the newest restore image from Apple") { done in
            VZMacOSRestoreImage.fetchLatestSupported(completionHandler: done)
        }
    }

    private static func image(
        _ doing: String,
        _ load: (@escaping @Sendable (Result<VZMacOSRestoreImage, any Error>) -> Void) -> Void
    ) async throws(VZFailure) -> RestoreImage {
        let reply = Reply<RestoreImage>(
            ifCancelled: VZFailure(code: .cancelled, reason: "\(doing): the caller cancelled the call"))
        let answer = await withTaskCancellationHandler {
            await reply.wait {
                load { result in
                    reply.settle(
                        result.map(RestoreImage.init)
                            .mapError { VZFailure($0, doing: doing, otherwise: .installFailed) })
                }
            }
        } onCancel: {
            reply.cancel()
        }
        return try answer.get()
    }

    /// Creates the directory `template` with `Disk.img` (sparse), `AuxiliaryStorage` and `HardwareModel.json`, and
    /// installs macOS there. The files are in `<template>.installing` until the template is complete; when the
    /// installation fails or the calling task is cancelled, they are removed.
    ///
    /// - Parameters:
    ///   - diskBytes: the disk's size, a multiple of 512.
    ///   - cpus: for the installation; raised to the restore image's minimum, within the host's limits.
    ///   - memoryBytes: in bytes; raised and limited in the same way.
    ///   - progress: called with 0…1 about twice a second.
    /// - Throws: `exists`, `notSupported`, `badSpec`, `installFailed`, `limitExceeded`, `diskFull`, `io`, `cancelled`.
    public static func install(
        ipsw: String, template: String, diskBytes: UInt64, cpus: Int, memoryBytes: UInt64,
        progress: @escaping @Sendable (Double) -> Void
    ) async throws(VZFailure) {
        let doing = "installing macOS from \(ipsw) as \(template)"
        guard diskBytes > 0, diskBytes.isMultiple(of: 512) else {
            throw VZFailure(
                code: .badSpec,
                reason: "\(doing): the disk size must be a multiple of 512 bytes, not \(diskBytes)")
        }
        let image = try await restoreImage(at: ipsw)
        guard image.isSupported, let hardwareModel = image.hardwareModel else {
            throw VZFailure(
                code: .notSupported,
                reason: "\(doing): this host cannot run macOS \(image.version) (\(image.build)) in a VM")
        }
        let staging = try StagingDirectory(for: template, doing: doing)
        do {
            try staging.create(hardwareModel, diskBytes: diskBytes)
            let spec = MachineSpec(
                bundle: staging.files.directory, os: .macos, cpus: max(cpus, image.minimumCPUs),
                memoryBytes: max(memoryBytes, image.minimumMemoryBytes))
            let machine = try Machine(id: 0, spec: spec, observer: NoObserver())
            let result = await machine.outcome { machine throws(VZFailure) in
                try await machine.install(restoreImage: URL(fileURLWithPath: ipsw), progress: progress)
            }
            try result.get()
            try staging.publish()
        } catch {
            throw staging.remove(after: error)
        }
        progress(1)
    }
}

private struct NoObserver: MachineObserver {
    func machine(_ id: UInt64, did event: MachineEvent) {}
}

extension Machine {
    /// The result of `use`; the machine is closed in any case.
    nonisolated func outcome(
        _ use: (Machine) async throws(VZFailure) -> Void
    ) async -> Result<Void, VZFailure> {
        let result: Result<Void, VZFailure>
        do {
            try await use(self)
            result = .success(())
        } catch {
            result = .failure(error)
        }
        await close()
        return result
    }
}

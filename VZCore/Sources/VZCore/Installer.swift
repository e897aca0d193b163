import Foundation
import Virtualization

/// Makes templates: installs macOS from a restore image (IPSW).
public enum Installer {
    /// What a restore image holds and wants.
    public struct RestoreImage: Codable, Sendable, Equatable {
        /// Where it is: a file's URL, or Apple's to download it from.
        public let url: String
        /// "25A354".
        public let build: String
        /// "26.0.1".
        public let version: String
        /// Whether this host can run it.
        public let isSupported: Bool
        /// What its guest needs at least.
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

    /// What is in the restore image file at `path`.
    /// - Throws: `installFailed`, `cancelled`.
    public static func restoreImage(at path: String) async throws(VZFailure) -> RestoreImage {
        try await image("reading the restore image \(path)") { done in
            VZMacOSRestoreImage.load(from: URL(fileURLWithPath: path), completionHandler: done)
        }
    }

    /// The newest restore image this host can run, for downloading. Asks Apple.
    /// - Throws: `installFailed`, `cancelled`.
    public static func latestRestoreImage() async throws(VZFailure) -> RestoreImage {
        try await image("asking Apple for the newest restore image") { done in
            VZMacOSRestoreImage.fetchLatestSupported(completionHandler: done)
        }
    }

    private static func image(
        _ doing: String,
        _ load: (@escaping @Sendable (Result<VZMacOSRestoreImage, any Error>) -> Void) -> Void
    ) async throws(VZFailure) -> RestoreImage {
        let reply = Reply<RestoreImage>(
            ifGivenUp: VZFailure(code: .cancelled, message: "\(doing): whoever asked gave up waiting"))
        let answer = await withTaskCancellationHandler {
            await reply.wait {
                load { result in
                    reply.settle(
                        result.map(RestoreImage.init)
                            .mapError { VZFailure($0, doing: doing, otherwise: .installFailed) })
                }
            }
        } onCancel: {
            reply.giveUp()
        }
        return try answer.get()
    }

    /// Makes the directory `template` with `Disk.img` (sparse), `AuxiliaryStorage` and `HardwareModel.json`, and installs
    /// macOS there. It grows as `<template>.installing` and takes its name when it is whole; when the installation
    /// fails or the calling task is cancelled, nothing is left.
    ///
    /// - Parameters:
    ///   - diskBytes: the disk's size, whole 512-byte sectors.
    ///   - cpus: for the installation; the restore image's minimum and the host's limits hold.
    ///   - memoryBytes: likewise.
    ///   - progress: told 0…1, now and then.
    /// - Throws: `exists`, `notSupported`, `badSpec`, `installFailed`, `limitExceeded`, `diskFull`, `io`, `cancelled`.
    public static func install(
        ipsw: String, template: String, diskBytes: UInt64, cpus: Int, memoryBytes: UInt64,
        progress: @escaping @Sendable (Double) -> Void
    ) async throws(VZFailure) {
        let doing = "installing macOS from \(ipsw) as \(template)"
        guard diskBytes > 0, diskBytes.isMultiple(of: 512) else {
            throw VZFailure(
                code: .badSpec,
                message: "\(doing): a disk has whole sectors of 512 bytes, not \(diskBytes) bytes")
        }
        let image = try await restoreImage(at: ipsw)
        guard image.isSupported, let hardwareModel = image.hardwareModel else {
            throw VZFailure(
                code: .notSupported,
                message: "\(doing): this host cannot run macOS \(image.version) (\(image.build)) in a VM")
        }
        let site = try Site(for: template, doing: doing)
        do {
            try site.lay(hardwareModel, diskBytes: diskBytes)
            let spec = MachineSpec(
                bundle: site.files.directory, os: .macos, cpus: max(cpus, image.minimumCPUs),
                memoryBytes: max(memoryBytes, image.minimumMemoryBytes))
            let machine = try Machine(id: 0, spec: spec, observer: NoObserver())
            let result = await machine.outcome { machine throws(VZFailure) in
                try await machine.install(restoreImage: URL(fileURLWithPath: ipsw), progress: progress)
            }
            try result.get()
            try site.publish()
        } catch {
            throw site.removed(after: error)
        }
        progress(1)
    }
}

private struct NoObserver: MachineObserver {
    func machine(_ id: UInt64, did event: MachineEvent) {}
}

extension Machine {
    /// What came of `use`, with the machine closed in any case.
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

import Darwin
import Foundation
import Virtualization

/// The directory `<template>.installing`, in which a template is built; it becomes the template or is removed.
struct StagingDirectory {
    let files: BundleFiles
    private let template: String
    private let doing: String

    /// - Throws: `exists`, `io`.
    init(for template: String, doing: String) throws(VZFailure) {
        self.template = template
        self.doing = doing
        files = BundleFiles(template + ".installing")
        guard access(template, F_OK) != 0 else {
            throw VZFailure(code: .exists, reason: "\(doing): \(template) already exists")
        }
        guard mkdir(files.directory, 0o700) == 0 else {
            guard errno == EEXIST else {
                throw VZFailure(errno: errno, doing: "\(doing): creating \(files.directory)")
            }
            throw VZFailure(
                code: .exists,
                reason:
                    "\(doing): \(files.directory) exists: another installation is running, or one was interrupted; "
                    + "if none is running, remove it")
        }
    }

    /// Creates the files that the installer needs.
    func create(_ hardwareModel: Data, diskBytes: UInt64) throws(VZFailure) {
        try NewFile(files.disk).extend(to: diskBytes)
        try files.writeHardwareModel(hardwareModel)
        try files.writeIdentifier(for: .macos)
        let model = try files.readHardwareModel()
        do {
            _ = try VZMacAuxiliaryStorage(
                creatingStorageAt: URL(fileURLWithPath: files.auxiliaryStorage), hardwareModel: model,
                options: [])
        } catch {
            throw VZFailure(error, doing: "creating \(files.auxiliaryStorage)", otherwise: .io)
        }
    }

    /// Renames the complete template to its name. Its machine identifier is removed: every clone gets a new one.
    func publish() throws(VZFailure) {
        guard unlink(files.machineIdentifier) == 0, rename(files.directory, template) == 0 else {
            throw VZFailure(
                errno: errno, doing: "\(doing): renaming \(files.directory) to the template's name")
        }
    }

    /// Removes everything; the returned failure says so.
    func remove(after failure: VZFailure) -> VZFailure {
        do {
            try FileManager.default.removeItem(atPath: files.directory)
            return VZFailure(
                code: failure.code,
                reason: "\(failure.reason); everything created for \(template) was removed")
        } catch {
            let left = VZFailure(error, doing: "removing \(files.directory)").reason
            return VZFailure(
                code: failure.code, reason: "\(failure.reason); and the cleanup failed: \(left)")
        }
    }
}

import Darwin
import Foundation
import Virtualization

/// Where a template grows: `<template>.installing`, which becomes the template or goes away again.
struct Site {
    let files: BundleFiles
    private let template: String
    private let doing: String

    /// - Throws: `exists`, `io`.
    init(for template: String, doing: String) throws(VZFailure) {
        self.template = template
        self.doing = doing
        files = BundleFiles(template + ".installing")
        guard access(template, F_OK) != 0 else {
            throw VZFailure(code: .exists, message: "\(doing): \(template) is there already")
        }
        guard mkdir(files.directory, 0o700) == 0 else {
            guard errno == EEXIST else {
                throw VZFailure(errno: errno, doing: "\(doing): making \(files.directory)")
            }
            throw VZFailure(
                code: .exists,
                message:
                    "\(doing): \(files.directory) is there: another installation runs, or one was cut off; "
                    + "if none runs, remove it")
        }
    }

    /// Makes what the installer wants to find.
    func lay(_ hardwareModel: Data, diskBytes: UInt64) throws(VZFailure) {
        try NewFile(files.disk).extend(to: diskBytes)
        try files.writeHardwareModel(hardwareModel)
        try files.writeIdentifier(for: .macos)
        let model = try files.readHardwareModel()
        do {
            _ = try VZMacAuxiliaryStorage(
                creatingStorageAt: URL(fileURLWithPath: files.auxiliaryStorage), hardwareModel: model,
                options: [])
        } catch {
            throw VZFailure(error, doing: "making \(files.auxiliaryStorage)", otherwise: .io)
        }
    }

    /// Gives the whole template its name. Its identity goes: every clone has its own.
    func publish() throws(VZFailure) {
        guard unlink(files.machineIdentifier) == 0, rename(files.directory, template) == 0 else {
            throw VZFailure(errno: errno, doing: "\(doing): giving \(files.directory) its name")
        }
    }

    /// Takes everything away again; the failure says so.
    func removed(after failure: VZFailure) -> VZFailure {
        do {
            try FileManager.default.removeItem(atPath: files.directory)
            return VZFailure(
                code: failure.code, message: "\(failure.message); nothing of \(template) was kept")
        } catch {
            let left = VZFailure(error, doing: "removing \(files.directory)").message
            return VZFailure(
                code: failure.code, message: "\(failure.message); and it is still there: \(left)")
        }
    }
}

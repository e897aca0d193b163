import Foundation

/// The content of a machine's auxiliary storage, and of an EFI variable store or an initial ramdisk as far as
/// the stand-in reads one: a JSON object with, each optional, `hardware_model` (base64; whose storage it is)
/// and `standin` (`Faults`). Anything else, such as the storage of a real Mac, holds neither.
struct StandInFile {
    let hardwareModel: Data?
    let faults: Faults?

    static func data(hardwareModel: Data) -> Data {
        Data("{\"hardware_model\": \"\(hardwareModel.base64EncodedString())\"}\n".utf8)
    }

    /// Nil if the file does not exist or is not such JSON. A fault that does not exist is a violation.
    init?(_ url: URL) {
        guard let json = Self.object(url) else { return nil }
        hardwareModel = (json["hardware_model"] as? String).flatMap { Data(base64Encoded: $0) }
        guard let asked = json["standin"] else {
            faults = nil
            return
        }
        do throws(Faults.Malformed) {
            guard let asked = asked as? [String: Any] else {
                throw Faults.Malformed(text: "it is not an object")
            }
            faults = try Faults(asked)
        } catch {
            Violations.report("\"standin\" in \(url.path): \(error.text)")
            faults = nil
        }
    }

    private static let largest = 64 << 10

    private static func object(_ url: URL) -> [String: Any]? {
        guard let file = try? FileHandle(forReadingFrom: url) else { return nil }
        defer { try? file.close() }
        guard let content = try? file.read(upToCount: largest), content.first == UInt8(ascii: "{") else {
            return nil
        }
        return (try? JSONSerialization.jsonObject(with: content)) as? [String: Any]
    }
}

import Foundation

/// Property lists as the framework's data representations are. Written by hand: Foundation refuses to write arrays in a
/// program it is linked into statically (swift-corelibs-foundation of Swift 6.0.3, error 3851).
enum PropertyList {
    enum Value {
        case number(UInt64)
        case text(String)
        case numbers([Int])

        fileprivate var xml: String {
            switch self {
            case .number(let number): "<integer>\(number)</integer>"
            case .text(let text): "<string>\(text)</string>"
            case .numbers(let numbers):
                "<array>" + numbers.map { "<integer>\($0)</integer>" }.joined() + "</array>"
            }
        }
    }

    /// Keys and texts must need no escaping: here they are names and UUIDs.
    static func data(_ dictionary: KeyValuePairs<String, Value>) -> Data {
        let entries = dictionary.map { "<key>\($0.key)</key>\($0.value.xml)" }.joined()
        return Data(
            #"<?xml version="1.0" encoding="UTF-8"?><plist version="1.0"><dict>\#(entries)</dict></plist>"#
                .utf8)
    }

    static func dictionary(_ data: Data) -> [String: Any]? {
        (try? PropertyListSerialization.propertyList(from: data, format: nil)) as? [String: Any]
    }
}

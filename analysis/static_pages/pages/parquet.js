// Rows of the set's Parquet files, by HTTP range requests. Where rows lie was written with the set (index.py): no footer is read.
import { decompress, parquetReadObjects } from "./hyparquet.js";

const SET = new URL("..", import.meta.url);
const NEAR = 65536; // bytes between two ranges up to which one request reads both
const wholes = new Map(); // files that the host sends whole, whatever is asked for

export const host = { sendsWholeFiles: false };

async function answered(path, headers = {}) {
  const response = await fetch(new URL(path, SET), { headers });
  if (!response.ok) throw new Error(`${path} cannot be read: the host answers ${response.status}`);
  return response;
}

const kept = new Map();

// A JSON or text file of the set, fetched once.
export function json(path) {
  if (!kept.has(path))
    kept.set(
      path,
      answered(path).then((response) => response.json()),
    );
  return kept.get(path);
}

export const text = async (path) => (await answered(path)).text();

async function bytes(path, start, end) {
  if (!wholes.has(path)) {
    const response = await answered(path, { Range: `bytes=${start}-${end - 1}` });
    const buffer = await response.arrayBuffer();
    if (response.status === 206) {
      if (buffer.byteLength !== end - start) throw new Error(`${path} cannot be read: the host answers another range`);
      return buffer;
    }
    host.sendsWholeFiles = true;
    wholes.set(path, buffer);
  }
  return wholes.get(path).slice(start, end);
}

const FIRST_SIZE = 4; // of a row group: rows, lowest key, highest key, first byte, then the bytes of each column
const sum = (numbers) => numbers.reduce((total, one) => total + one, 0);

function metadataOf(file, groups) {
  const columns = file.columns.map(([name, type, isText, isOptional]) => ({
    name,
    type,
    repetition_type: isOptional ? "OPTIONAL" : "REQUIRED",
    ...(isText && { converted_type: "UTF8", logical_type: { type: "STRING" } }),
  }));
  return {
    version: 2,
    schema: [{ name: "schema", num_children: columns.length }, ...columns],
    num_rows: BigInt(sum(groups.map(([n]) => n))),
    metadata_length: 0,
    row_groups: groups.map(([n, , , first, ...sizes]) => ({
      num_rows: BigInt(n),
      total_byte_size: BigInt(sum(sizes)),
      columns: columns.map(({ name, type }, place) => ({
        meta_data: {
          type,
          path_in_schema: [name],
          codec: "ZSTD",
          encodings: [],
          num_values: BigInt(n),
          total_compressed_size: BigInt(sizes[place]),
          total_uncompressed_size: BigInt(sizes[place]),
          data_page_offset: BigInt(first + sum(sizes.slice(0, place))),
        },
      })),
    })),
  };
}

// The row groups that may hold a key; ids past 2^53 come as BigInt, and their ranges as texts.
export const groupsOf = (file, key) =>
  file.groups.filter(
    ([, low, high]) =>
      low === null || (typeof key === "bigint" ? BigInt(low) <= key && key <= BigInt(high) : low <= key && key <= high),
  );

// All rows of some row groups, as objects: 64-bit integers as BigInt. Groups that lie near each other are one request.
export async function rowsOf(file, groups, columns) {
  const ranges = [];
  for (const group of groups) {
    const [start, end] = [group[3], group[3] + sum(group.slice(FIRST_SIZE))];
    const last = ranges.at(-1);
    if (last && start - last.end <= NEAR) {
      last.end = end;
      last.groups.push(group);
    } else ranges.push({ start, end, groups: [group] });
  }
  const read = async ({ start, end, groups }) => {
    const buffer = await bytes(file.path, start, end);
    return parquetReadObjects({
      file: { byteLength: end, slice: (from, to) => buffer.slice(from - start, to - start) },
      metadata: metadataOf(file, groups),
      columns,
      compressors: { ZSTD: (input, length) => decompress(input, new Uint8Array(length)) },
    });
  };
  return (await Promise.all(ranges.map(read))).flat();
}

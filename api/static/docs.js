// Draws openapi.json: what there is, its fields, and a curl line that works here. No outside script is needed.
"use strict";

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

// The little Markdown of our descriptions: paragraphs, "* " lists, `code`, **bold**, *emphasis*.
function inline(text) {
  const tags = { "`": "code", "**": "strong", "*": "em" };
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*|\*[^*\s][^*]*\*)/).map((part) => {
    const [, mark, inner] = /^(`|\*\*|\*)(.+)\1$/s.exec(part) ?? [];
    return mark ? element(tags[mark], { textContent: inner }) : part;
  });
}

function markdown(text) {
  return text.split(/\n\n+/).map((block) => {
    const items = block.split(/^\* /m).slice(1);
    return block.startsWith("* ") ? element("ul", {}, ...items.map((item) => element("li", {}, ...inline(item)))) : element("p", {}, ...inline(block));
  });
}

const resolve = (api, schema) => (schema?.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : (schema ?? {}));

function typeName(api, schema) {
  if (schema.$ref) return resolve(api, schema).type === "object" ? schema.$ref.split("/").pop() : typeName(api, resolve(api, schema));
  if (schema.anyOf) return schema.anyOf.map((each) => typeName(api, each)).join(" | ");
  if (schema.enum) return schema.enum.map((each) => JSON.stringify(each)).join(" | ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.type === "array") return `[${typeName(api, schema.items ?? {})}]`;
  return schema.type ?? "any";
}

// An example body: the schema's own examples, required fields, and nothing else.
function example(api, schema) {
  const known = resolve(api, schema);
  if (known.examples?.length) return known.examples[0];
  if (known.properties) {
    const shown = Object.entries(known.properties).filter(([name, each]) => known.required?.includes(name) || each.examples);
    return Object.fromEntries(shown.map(([name, each]) => [name, example(api, each)]));
  }
  if (known.type === "array") return [example(api, known.items)];
  return known.default ?? (known.type === "integer" ? 1 : "text");
}

const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function curl(api, method, path, operation) {
  const values = { collection: "default", document_id: "udhr/en%2326", name: "default" };
  // nobody who tries the line out loses what is there
  if (method === "delete") values.collection = "handbook";
  const url = location.origin + path.replace(/\{(\w+)(:\w+)?\}/g, (_, name) => values[name] ?? name);
  const query = (operation.parameters ?? []).filter((each) => each.in === "query" && each.required);
  const asked = query.map((each) => `${each.name}=${encodeURIComponent(each.schema?.examples?.[0] ?? each.example ?? "text")}`);
  const parts = [`curl ${method === "get" ? "" : `-X ${method.toUpperCase()} `}${shell(url + (asked.length ? `?${asked.join("&")}` : ""))}`];
  const content = operation.requestBody?.content ?? {};
  if (content["application/json"]) {
    parts.push("-H 'content-type: application/json'", `-d ${shell(JSON.stringify(example(api, content["application/json"].schema)))}`);
  } else if (content["multipart/form-data"]) parts.push("-F files=@handbook.pdf");
  return parts.join(" \\\n  ");
}

function fields(api, operation) {
  const body = resolve(api, Object.values(operation.requestBody?.content ?? {})[0]?.schema);
  const ofBody = Object.entries(body.properties ?? {}).map(([name, schema]) => [name, schema, body.required?.includes(name)]);
  const ofUrl = (operation.parameters ?? []).filter((each) => each.in !== "header").map((each) => [each.name, { description: each.description, ...each.schema }, each.required]);
  const rows = [...ofUrl, ...ofBody].map(([name, schema, required]) => {
    const fallback = schema.default === undefined || schema.default === null ? "" : ` Default ${JSON.stringify(schema.default)}.`;
    return element("tr", {},
      element("td", {}, element("code", { textContent: name }), required ? " *" : ""),
      element("td", { textContent: typeName(api, schema) }),
      element("td", {}, ...inline((schema.description ?? "") + fallback)));
  });
  if (!rows.length) return null;
  const headings = ["Field (* needed)", "Type", "Meaning"].map((text) => element("th", { textContent: text, scope: "col" }));
  return element("table", {}, element("thead", {}, element("tr", {}, ...headings)), element("tbody", {}, ...rows));
}

function operationItem(api, method, path, operation) {
  const head = element("summary", {}, element("span", { className: "method", textContent: method.toUpperCase() }), element("code", { textContent: path }), ` ${operation.summary}`);
  const item = element("details", {}, head);
  item.addEventListener("toggle", () => {
    if (item.childElementCount > 1) return;
    item.append(...markdown(operation.description ?? ""), element("pre", { textContent: curl(api, method, path, operation) }), ...[fields(api, operation)].filter(Boolean));
  });
  return item;
}

async function draw() {
  const api = await (await fetch("/openapi.json")).json();
  const groups = new Map();
  for (const [path, operations] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(operations)) {
      const tag = operation.tags?.[0] ?? "other";
      groups.set(tag, [...(groups.get(tag) ?? []), operationItem(api, method, path, operation)]);
    }
  }
  const sections = [...groups].map(([tag, items]) => element("section", {}, element("h2", { textContent: tag }), ...items));
  document.getElementById("content").replaceChildren(...markdown(api.info.description), ...sections);
}

draw().catch((error) => {
  document.getElementById("content").textContent = `The description could not be loaded: ${error.message}`;
});

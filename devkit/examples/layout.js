// Loads a workflow in API form into ComfyUI's page, adds the notes, lays everything out, and returns what the page saves.
async ({ prompt, name, groups, sizes }) => {
  const { app, LiteGraph } = window
  const GAP = 30
  const HEAD = LiteGraph.NODE_TITLE_HEIGHT
  const COLOURS = ['#3f789e', '#88AA88', '#b58b2a', '#8A6BBE']
  const settle = (ms) => new Promise((done) => setTimeout(done, ms))

  const fixSeeds = (node) => {
    for (const widget of node.widgets ?? []) if (widget.name === 'control_after_generate') widget.value = 'fixed'
  }
  const note = (text) => {
    const node = LiteGraph.createNode('MarkdownNote')
    app.graph.add(node)
    node.title = 'What you see, what to try'
    node.widgets[0].value = text
    return node
  }
  const resize = (node) => {
    const [width, height] = sizes[node.type] ?? [0, 0]
    const own = node.computeSize()
    node.setSize([Math.max(width, own[0], 270), Math.max(height, own[1])])
  }
  const column = (entries, x, top) => {
    let y = top
    let width = 0
    for (const entry of entries) {
      const node = entry.note ? note(entry.note) : app.graph.getNodeById(entry.id)
      fixSeeds(node)
      resize(node)
      node.pos = [x, y + HEAD]
      y += HEAD + node.size[1] + GAP
      width = Math.max(width, node.size[0])
    }
    return [width, y]
  }

  await app.loadApiJson(prompt, name)
  await settle(1500)
  let x = 0
  const fields = []
  for (const [i, group] of groups.entries()) {
    const left = x
    let bottom = 0
    for (const entries of group.columns) {
      const [width, end] = column(entries, x + GAP, HEAD + 10)
      x += width + GAP
      bottom = Math.max(bottom, end)
    }
    x += GAP
    fields.push({ title: group.title, bounding: [left, -HEAD, x - left, bottom + HEAD], color: COLOURS[i % 4] })
    x += GAP
  }
  const saved = app.graph.serialize()
  const bottom = Math.max(...fields.map((field) => field.bounding[3]))
  saved.groups = fields.map((field, i) => {
    const [left, top, width] = field.bounding
    return { id: i + 1, title: field.title, bounding: [left, top, width, bottom], color: field.color, flags: {} }
  })
  return saved
}

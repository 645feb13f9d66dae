// A dashboard on Grafana's grid. `window.dashboard` has its JSON, the results of its queries and its annotations.
import React from 'react';
import { createRoot } from 'react-dom/client';
import { createTheme, dateTime, ThemeContext } from '@grafana/data';
import { GlobalStyles, PanelChrome, PortalContainer } from '@grafana/ui';
import plotStyle from 'uplot/dist/uPlot.min.css';
import gridStyle from '@grafana/react-data-grid/lib/styles.css';
import { framesOf } from './frames.js';
import { Visualization } from './panels.jsx';

const COLUMNS = 24, ROW = 30, GAP = 8, MARGIN = 16, HEADER = 48;
const theme = createTheme({ colors: { mode: window.dashboard.mode } });

function rectangle({ x, y, w, h }, width) {
  const column = (width - 2 * MARGIN + GAP) / COLUMNS;
  return {
    left: Math.round(MARGIN + x * column), top: HEADER + y * (ROW + GAP),
    width: Math.round(w * column - GAP), height: h * (ROW + GAP) - GAP,
  };
}

function Choice({ name, value }) {
  const border = `1px solid ${theme.colors.border.medium}`;
  const part = { padding: '5px 10px', fontSize: 12, lineHeight: '18px' };
  return (
    <span style={{ display: 'inline-flex', border, borderRadius: 3, marginRight: 8 }}>
      <span style={{ ...part, fontWeight: 500, borderRight: border }}>{name}</span>
      <span style={{ ...part, background: theme.colors.background.primary }}>{value}</span>
    </span>
  );
}

function Header({ dashboard }) {
  return (
    <div style={{ position: 'absolute', left: MARGIN, right: MARGIN, top: 8, display: 'flex', alignItems: 'center' }}>
      <span style={{ fontSize: 18, fontWeight: 500, marginRight: 24 }}>{dashboard.title}</span>
      {dashboard.choices.map(([name, value]) => <Choice key={name} name={name} value={value} />)}
      <span style={{ marginLeft: 'auto', fontSize: 12, color: theme.colors.text.secondary }}>{dashboard.span}</span>
    </div>
  );
}

function Panel({ panel, frames, range, width, annotations }) {
  const place = rectangle(panel.gridPos, width);
  if (panel.type === 'row') {
    return <div style={{ position: 'absolute', ...place, fontSize: 16, fontWeight: 500, lineHeight: '30px' }}>{panel.title}</div>;
  }
  return (
    <div className="panel" data-title={panel.title} data-type={panel.type} style={{ position: 'absolute', ...place }}>
      <PanelChrome title={panel.title} description={panel.description} width={place.width} height={place.height}>
        {(innerWidth, innerHeight) => (
          <Visualization
            panel={panel} frames={frames} theme={theme} width={innerWidth} height={innerHeight} range={range}
            annotations={annotations}
          />
        )}
      </PanelChrome>
    </div>
  );
}

async function show() {
  const { dashboard } = window;
  const [from, to] = dashboard.range.map((seconds) => dateTime(seconds * 1000));
  const range = { from, to, raw: { from, to } };
  const panels = await Promise.all(
    dashboard.panels.map(async ({ panel, results }) => ({
      panel, frames: panel.type === 'row' ? [] : await framesOf(panel, results, theme),
    })),
  );
  const width = document.documentElement.clientWidth;
  const bottom = Math.max(...dashboard.panels.map(({ panel: { gridPos } }) => gridPos.y + gridPos.h));
  const root = document.getElementById('root');
  root.style.height = `${HEADER + bottom * (ROW + GAP) + GAP}px`;
  document.body.style.background = theme.colors.background.canvas;
  createRoot(root).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <style>{plotStyle + gridStyle}</style>
      <PortalContainer />
      <Header dashboard={dashboard} />
      {panels.map(({ panel, frames }) => (
        <Panel key={panel.id} panel={panel} frames={frames} range={range} width={width} annotations={dashboard.annotations} />
      ))}
    </ThemeContext.Provider>,
  );
  window.done = true;
}

show().catch((error) => { window.failed = String(error?.stack ?? error); });

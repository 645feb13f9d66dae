// Grafana's own visualizations, put together as its panel plugins do.
import React from 'react';
import { getDisplayValueAlignmentFactors, getFieldDisplayValues } from '@grafana/data';
import { BarGauge, BigValue, TimeSeries, VizRepeater } from '@grafana/ui';
import { TableNG } from '@grafana/ui/unstable';

const none = (text) => text;

function displayValues({ panel, frames, theme }, sparkline) {
  return getFieldDisplayValues({
    fieldConfig: panel.fieldConfig,
    reduceOptions: panel.options.reduceOptions,
    replaceVariables: none,
    theme,
    data: frames,
    sparkline,
    timeZone: 'utc',
  });
}

function Stat(props) {
  const { panel, frames, theme, width, height, range } = props;
  const { options } = panel;
  const sparkline = (value) => value.sparkline && {
    ...value.sparkline,
    timeRange: range,
  };
  return (
    <VizRepeater
      getValues={() => displayValues(props, options.graphMode !== 'none')}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={({ value, alignmentFactors, width, height, count }) => (
        <BigValue
          value={value.display}
          count={count}
          sparkline={sparkline(value)}
          colorMode={options.colorMode}
          graphMode={options.graphMode}
          justifyMode={options.justifyMode}
          textMode={options.textMode}
          alignmentFactors={alignmentFactors}
          width={width}
          height={height}
          theme={theme}
          wideLayout={options.wideLayout}
        />
      )}
      width={width} height={height} source={frames} itemSpacing={3} renderCounter={0} autoGrid={true}
      orientation={options.orientation}
    />
  );
}

function Bars(props) {
  const { panel, frames, theme, width, height } = props;
  const { options } = panel;
  return (
    <VizRepeater
      getValues={() => displayValues(props, false)}
      getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={({ value, alignmentFactors, orientation, width, height, count }) => (
        <BarGauge
          value={value.display} width={width} height={height} orientation={orientation}
          field={value.field} display={value.view?.getFieldDisplayProcessor(value.colIndex)}
          theme={theme} itemSpacing={8} lcdCellWidth={12}
          displayMode={options.displayMode} alignmentFactors={count > 1 ? alignmentFactors : undefined}
          showUnfilled={options.showUnfilled} valueDisplayMode={options.valueMode}
          namePlacement={options.namePlacement} text={options.text}
        />
      )}
      width={width} height={height} source={frames} renderCounter={0} itemSpacing={8}
      minVizWidth={options.minVizWidth} minVizHeight={options.minVizHeight} maxVizHeight={options.maxVizHeight}
      orientation={options.orientation}
    />
  );
}

// Dashed lines at what happened, as Grafana draws annotations.
function drawAnnotations(builder, annotations, theme) {
  builder.addHook('draw', (plot) => {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height + 8 * devicePixelRatio);
    ctx.clip();
    for (const { color, times } of annotations) {
      const shade = theme.visualization.getColorByName(color);
      ctx.strokeStyle = ctx.fillStyle = shade;
      ctx.lineWidth = devicePixelRatio;
      for (const time of times) {
        const x = Math.round(plot.valToPos(time * 1000, 'x', true));
        const bottom = bbox.top + bbox.height, size = 5 * devicePixelRatio;
        ctx.setLineDash([5 * devicePixelRatio, 5 * devicePixelRatio]);
        ctx.beginPath();
        ctx.moveTo(x, bbox.top);
        ctx.lineTo(x, bottom);
        ctx.stroke();
        ctx.beginPath();
        ctx.moveTo(x, bottom - size);
        ctx.lineTo(x - size, bottom + size / 2);
        ctx.lineTo(x + size, bottom + size / 2);
        ctx.fill();
      }
    }
    ctx.restore();
  });
}

function Curves({ panel, frames, theme, width, height, range, annotations }) {
  return (
    <TimeSeries
      frames={frames} structureRev={1} timeRange={range} timeZone="utc" width={width} height={height}
      legend={panel.options.legend} options={panel.options}
    >
      {(builder) => {
        drawAnnotations(builder, annotations, theme);
        return null;
      }}
    </TimeSeries>
  );
}

function Rows({ panel, frames, width, height, range }) {
  return (
    <TableNG
      height={height} width={width} data={frames[0]} noHeader={!panel.options.showHeader} resizable={true}
      cellHeight={panel.options.cellHeight} timeRange={range} fieldConfig={panel.fieldConfig} structureRev={1}
    />
  );
}

const KINDS = { stat: Stat, bargauge: Bars, timeseries: Curves, table: Rows };

export function Visualization(props) {
  const { panel, frames } = props;
  const empty = frames.length === 0 || frames.every((frame) => frame.length === 0);
  if (empty && panel.type !== 'stat') {
    return <div className="empty">{panel.fieldConfig.defaults.noValue ?? 'No data'}</div>;
  }
  const Kind = KINDS[panel.type];
  return <Kind {...props} />;
}
